"""`serve`: answers over HTTP as the OpenAI API does.

Knows nothing about the paths: they are `hybridqa.server`'s. Exit code 0 when it is stopped.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from hybridqa.cli import output
from hybridqa.cli.context import AsJson, command, open_store
from hybridqa.errors import ConfigError

if TYPE_CHECKING:
    from hybridqa.pipeline import HybridQA

NEEDED = "`hybridqa serve` needs fastapi and uvicorn; install them with `pip install 'hybridqa[server]'`."

GRACE_S = 10  # for answers that are being written when it is stopped


@command
def serve(
    context: typer.Context,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; one that others can reach needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0: any that is free.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Answer over HTTP, as the OpenAI API does, until it is stopped."""
    try:
        import uvicorn  # noqa: F401

        from hybridqa.server.gate import is_loopback
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
            raise
        raise ConfigError(NEEDED) from error
    with open_store(context) as store:
        if not is_loopback(host) and not store.catalog.has_keys():
            raise ConfigError(
                f"host {host!r} can be reached from other machines, and the store has no keys; expected one, or an "
                "address of this machine alone, such as '127.0.0.1'. Make a key with `hybridqa keys add NAME`."
            )
        _serve(store, host, port, as_json)


def _serve(store: HybridQA, host: str, port: int, as_json: bool) -> None:
    import uvicorn

    from hybridqa.server.app import create_app

    with _listening(host, port) as listener:
        config = uvicorn.Config(
            create_app(store), log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S
        )
        server = uvicorn.Server(config)
        url = f"http://{_shown(host)}:{listener.getsockname()[1]}/v1"
        if as_json:
            output.say_json({"url": url})
        else:
            output.note(f"listening at {url}; Ctrl-C stops it")
        with suppress(KeyboardInterrupt):  # the server has ended its requests by then
            server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host!r} cannot be listened at: {error.strerror}; expected a free one. Give another with "
            "--port, or --port 0 for any that is free."
        ) from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
