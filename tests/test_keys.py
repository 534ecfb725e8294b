"""Keys: made once, kept as hashes, told from guesses; over the catalog and the command line."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridqa import HybridQA
from hybridqa.catalog import Catalog
from hybridqa.cli import app
from hybridqa.errors import InputError, NotFoundError
from hybridqa.keys import Role, digest_of, is_token_of, key_id_of, new_key


def test_roles_cover_those_before_them() -> None:
    assert [[one.covers(other) for other in Role] for one in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_a_token_is_told_from_a_guess(tmp_path: Path) -> None:
    token, key = new_key("website", "edit", ("b", "a", "b"), per_minute=5)
    assert key.collections == ("a", "b") and key_id_of(token) == key.key_id and is_token_of(token, key)
    other, _ = new_key("other")
    assert not is_token_of(other, key) and not is_token_of(token, None) and not is_token_of("", key)
    assert not is_token_of(token[:-1] + ("a" if token[-1] != "a" else "b"), key)
    for guess in ("", "hqa-", token.upper(), f"{token} ", "hqa-000000000000-" + "é" * 43):
        assert key_id_of(guess) in (None, key.key_id) and not is_token_of(guess, key)
    with Catalog.open(tmp_path / "c.sqlite3", create=True) as catalog:
        assert not catalog.has_keys()
        kept = catalog.add_key(key)
        assert catalog.find_key(key.key_id) == kept and catalog.list_keys() == [kept] and catalog.has_keys()
        assert kept.created_at and catalog.find_key("nobody") is None
        catalog.remove_key(key.key_id)
        assert catalog.find_key(key.key_id) is None
        with pytest.raises(NotFoundError, match=f"no key {key.key_id!r}"):
            catalog.remove_key(key.key_id)


def test_a_key_that_means_nothing_is_refused() -> None:
    for name, role, collections, said in (
        (" ", "ask", None, "cannot name a key"),
        ("a\nb", "ask", None, "cannot name a key"),
        ("a", "root", None, "role 'root'"),
        ("a", "ask", (), "reaches no collection"),
        ("a", "ask", ("../x",), "cannot name a collection"),
    ):
        with pytest.raises(InputError, match=said):
            new_key(name, role, collections)
    with pytest.raises(InputError, match="per_minute=0"):
        new_key("a", per_minute=0)


def test_the_store_keeps_no_token(tmp_path: Path) -> None:
    with HybridQA.open(tmp_path, create=True) as qa:
        token, key = qa.add_key("website", Role.ASK, ["default"])
    secret = token.rpartition("-")[2]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()
    with sqlite3.connect(tmp_path / "indexes" / "default" / "catalog.sqlite3") as connection:
        assert connection.execute("SELECT digest FROM keys").fetchall() == [(digest_of(token),)]
    connection.close()
    assert secret not in repr(key)


def test_the_command_line_makes_lists_and_removes_them(tmp_path: Path) -> None:
    runner = CliRunner(env={"HYBRIDQA_STORE": str(tmp_path)})
    assert runner.invoke(app, ["init"]).exit_code == 0
    made = runner.invoke(app, ["keys", "add", "website", "-c", "default", "--per-minute", "60", "--json"])
    told = json.loads(made.stdout)
    assert made.exit_code == 0 and told["token"].startswith(f"hqa-{told['key_id']}-")
    plain = runner.invoke(app, ["keys", "add", "owner", "--role", "admin", "--all-collections"])
    assert plain.exit_code == 0 and plain.stdout.startswith("hqa-") and "only time" in plain.stderr
    listed = json.loads(runner.invoke(app, ["keys", "--json"]).stdout)["keys"]
    assert [(key["name"], key["role"], key["collections"]) for key in listed] == [
        ("website", "ask", ["default"]),
        ("owner", "admin", ["(all)"]),
    ]
    assert all("token" not in key and "digest" not in key for key in listed)
    assert "website" in runner.invoke(app, ["keys"]).stdout
    assert runner.invoke(app, ["keys", "rm", told["key_id"]]).exit_code == 0
    gone = runner.invoke(app, ["keys", "rm", told["key_id"]])
    assert gone.exit_code == 2 and "no key" in gone.output
    neither = runner.invoke(app, ["keys", "add", "x"])
    assert neither.exit_code == 2 and "--all-collections" in neither.output
