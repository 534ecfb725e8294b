"""Keys of a served store: what one may do, and how a token is told from a guess.

Knows nothing about HTTP or SQL. Invariant: a token is shown once, when it is made; what is kept of it is a hash from
which it cannot be had back, and a comparison takes as long for a wrong one as for a right one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from hybridqa.errors import InputError

_TOKEN = re.compile(r"hqa-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_NOBODY = "0" * 64  # the hash of no token
MAX_NAME_CHARACTERS = 200


class Role(StrEnum):
    """What a key may do; each may do what those before it may."""

    ASK = "ask"  # questions, searches, and reading documents and the list of modules
    EDIT = "edit"  # adding and removing documents, rolling modules back
    ADMIN = "admin"  # what is counted over all collections

    def covers(self, other: Role) -> bool:
        """Whether this role may do what the other may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the store keeps it."""

    key_id: str
    name: str  # for people
    digest: str  # sha256 hex of the token, which has 256 random bits: a slow hash would add nothing
    role: Role
    collections: tuple[str, ...] | None  # None: every one, also those that are made later
    per_minute: int | None = None  # requests, at most; None: the setting `requests_per_minute`
    at_once: int | None = None  # requests in work, at most; None: the setting `requests_at_once`
    created_at: str = ""

    def may_use(self, collection: str) -> bool:
        """Whether it reaches a collection, be it there or not."""
        return self.collections is None or collection in self.collections


def new_key(
    name: str,
    role: Role | str = Role.ASK,
    collections: tuple[str, ...] | None = None,
    *,
    per_minute: int | None = None,
    at_once: int | None = None,
) -> tuple[str, Key]:
    """A new token, and the key that the store keeps of it. Raises `InputError`."""
    from hybridqa.catalog_rows import checked_collection  # here: roles are asked about where numpy is not

    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise InputError(
            f"{name[:MAX_NAME_CHARACTERS]!r} cannot name a key; expected 1 to {MAX_NAME_CHARACTERS} printable "
            "characters, such as 'website'."
        )
    if role not in list(Role):
        raise InputError(f"role {role!r} cannot be given to a key; expected one of {', '.join(Role)}.")
    if collections is not None and not collections:
        raise InputError(f"key {name!r} reaches no collection; expected one or more, or all.")
    for collection in collections or ():
        checked_collection(collection)
    for what, value in (("per_minute", per_minute), ("at_once", at_once)):
        if value is not None and value < 1:
            raise InputError(f"{what}={value!r} of key {name!r} cannot be used; expected 1 or more.")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    token = f"hqa-{key_id}-{secret}"
    chosen = None if collections is None else tuple(sorted(set(collections)))
    return token, Key(key_id, name, digest_of(token), Role(role), chosen, per_minute, at_once)


def key_id_of(token: str) -> str | None:
    """The id in a token; None where it is none of ours."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else found.group(1)


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_token_of(token: str, key: Key | None) -> bool:
    """Whether the token is the key's; takes as long where there is no such key."""
    right = hmac.compare_digest(digest_of(token), _NOBODY if key is None else key.digest)
    return right and key is not None
