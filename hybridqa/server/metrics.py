"""What the server counts, for Prometheus.

Knows nothing about what is asked or answered. Invariant: no label holds anything of a collection, a key or a text, and
there are as many label values as paths, modes and statuses.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridqa.types import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        kept = self._registry = CollectorRegistry()
        space = "hybridqa"
        self.requests = Counter(
            "requests", "Requests answered.", ["method", "path", "status"], namespace=space, registry=kept
        )
        self.seconds = Histogram(
            "request_seconds",
            "From a request to the end of its answer.",
            ["path"],
            namespace=space,
            registry=kept,
            buckets=_SECONDS,
        )
        self.open = Gauge("requests_open", "Requests in work.", namespace=space, registry=kept)
        self._answers = Counter("answers", "Questions answered.", ["mode", "outcome"], namespace=space, registry=kept)
        self._tokens = Counter("tokens", "Tokens of prompts and answers.", ["kind"], namespace=space, registry=kept)
        self._steps = Histogram(
            "step_seconds",
            "What an answer spent in each step; first_token is from the engine's start to its first token.",
            ["step"],
            namespace=space,
            registry=kept,
            buckets=_SECONDS,
        )
        self._modules = Counter(
            "answers_with_modules", "Answers that modules had a part in.", namespace=space, registry=kept
        )

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, answer: Answer) -> None:
        """Counts an answer."""
        self._answers.labels(str(answer.mode), "abstained" if answer.abstained else "answered").inc()
        self._tokens.labels("prompt").inc(answer.usage.prompt_tokens)
        self._tokens.labels("completion").inc(answer.usage.completion_tokens)
        if answer.modules:
            self._modules.inc()
        for step, seconds in answer.timings.items():
            self._steps.labels(step).observe(seconds)


class Counted:
    """ASGI middleware: counts what goes through."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # where the client has gone before there was one

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        metrics = self._metrics
        metrics.open.inc()
        try:
            await self._app(scope, receive, seen)
        except Exception:
            status = 500
            raise
        finally:
            metrics.open.dec()
            path = getattr(scope.get("route"), "path", "other")  # as it was declared: what clients make up is one
            metrics.requests.labels(_method(scope), path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - began)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT") else "other"
