"""`keys`: who may ask a served store, and for what.

Knows nothing about HTTP. Invariant: a token is printed once, when it is made, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hybridqa.cli import output
from hybridqa.cli.context import AsJson, command, open_store
from hybridqa.keys import Key, Role

app = typer.Typer(help="List, make and remove the keys of a served store.", invoke_without_command=True)


@app.callback()
@command
def list_by_default(context: typer.Context, as_json: AsJson = False) -> None:
    """List, make and remove the keys of a served store; lists them when no command is given."""
    if context.invoked_subcommand is None:
        _list(context, as_json)
        return
    context.default_map = {context.invoked_subcommand: {"as_json": as_json}}  # it may stand before the command


@app.command("list")
@command
def list_keys(context: typer.Context, as_json: AsJson = False) -> None:
    """List the keys, without their tokens: those are kept nowhere."""
    _list(context, as_json)


@app.command("add")
@command
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for, such as 'website'.")],
    role: Annotated[Role, typer.Option("--role", help="What it may do; each may do what those before it may.")] = (
        Role.ASK
    ),
    collections: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="A collection that it reaches; may be repeated.")
    ] = None,
    everywhere: Annotated[bool, typer.Option("--all-collections", help="It reaches every collection.")] = False,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="Requests in a minute, at most.")
    ] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", min=1, help="Requests at once, at most.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its token, once: only a hash of it is kept."""
    from hybridqa.errors import InputError

    if bool(collections) == everywhere:
        given = "both --collection and" if everywhere else "neither --collection nor"
        raise InputError(
            f"key {name!r} was given {given} --all-collections; expected one of them, such as `--collection default`."
        )
    with open_store(context) as store:
        token, key = store.add_key(
            name, role, None if everywhere else collections, per_minute=per_minute, at_once=at_once
        )
    if as_json:
        output.say_json({**_row(key), "token": token})
    else:
        output.say(token)
        output.note("This is the only time that the token is shown. Send it as `Authorization: Bearer TOKEN`.")


@app.command("rm")
@command
def rm(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="The key's id, as `hybridqa keys` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Remove a key: a running server refuses it from the next request on."""
    with open_store(context) as store:
        store.remove_key(key_id)
    if as_json:
        output.say_json({"removed": key_id})
    else:
        output.say(f"removed   {key_id}")


def _list(context: typer.Context, as_json: bool) -> None:
    with open_store(context) as store:
        rows = [_row(key) for key in store.list_keys()]
    if as_json:
        output.say_json({"keys": rows})
        return
    if not rows:
        output.note("The store has no keys: it is served to this machine alone. `hybridqa keys add NAME` makes one.")
    columns = ("key_id", "name", "role", "collections", "per_minute", "at_once", "created_at")
    output.table(columns, ([_cell(row[column]) for column in columns] for row in rows))


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else value


def _row(key: Key) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "role": str(key.role),
        "collections": ["(all)"] if key.collections is None else list(key.collections),
        "per_minute": key.per_minute,
        "at_once": key.at_once,
        "created_at": key.created_at,
    }
