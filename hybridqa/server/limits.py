"""How much a key, and all keys together, may have the server do.

Knows nothing about HTTP paths or answers. Invariant: what `enter` let in is counted until `leave`, and what it refused
is not; one event loop calls it.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hybridqa.keys import Key
from hybridqa.server.errors import ApiError

_REMEMBERED = 10_000  # keys whose last minute is known


@dataclass(slots=True)
class _Account:
    """What one key has open."""

    allowance: float  # requests that it may send at once
    asked_at: float
    at_once: int = 0


class Limits:
    """Requests in a minute and at once, of each key; answers at once, of all."""

    def __init__(
        self, *, per_minute: int, at_once: int, queue: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`per_minute` and `at_once` are of a key that has none of its own, 0 for no limit; `queue` is of all."""
        self._per_minute = per_minute
        self._at_once = at_once
        self._queue = queue
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self.working = 0  # requests in the queue, those in work among them

    def enter(self, key: Key | None, *, queued: bool) -> None:
        """Counts a request in; `queued`: it waits for the engine. Raises `ApiError` with when to come again."""
        account, per_minute = self._account(key)
        at_once = (key.at_once if key is not None else None) or self._at_once
        if at_once and account.at_once >= at_once:
            raise _refused(429, f"this key has {at_once} requests in work, its most at once.", "too_many_at_once", 1)
        if per_minute and account.allowance < 1:
            wait = math.ceil((1 - account.allowance) * 60 / per_minute)
            raise _refused(429, f"this key has sent {per_minute} requests in a minute, its most.", "rate_limited", wait)
        if queued and self.working >= self._queue:
            raise _refused(
                503, f"{self._queue} requests are waiting for the engine, the most at once.", "queue_full", 2
            )
        account.allowance -= 1 if per_minute else 0
        account.at_once += 1
        self.working += queued

    def leave(self, key: Key | None, *, queued: bool) -> None:
        """Counts a request out that `enter` let in."""
        account, _ = self._account(key)
        account.at_once -= 1
        self.working -= queued

    def _account(self, key: Key | None) -> tuple[_Account, int]:
        """The key's account as it is now, and its requests in a minute."""
        name = "" if key is None else key.key_id
        per_minute = (key.per_minute if key is not None else None) or self._per_minute
        now = self._clock()
        account = self._accounts.pop(name, None) or _Account(float(per_minute), now)
        earned = (now - account.asked_at) * per_minute / 60
        account.allowance = min(float(per_minute), account.allowance + earned)
        account.asked_at = now
        self._accounts[name] = account  # now the last
        if len(self._accounts) > _REMEMBERED:
            oldest = next(iter(self._accounts))
            if not self._accounts[oldest].at_once:
                del self._accounts[oldest]
        return account, per_minute


def _refused(status: int, message: str, code: str, wait_s: int) -> ApiError:
    again = f" Ask again in {wait_s} s."
    return ApiError(status, message + again, code=code, headers={"Retry-After": str(max(1, wait_s))})
