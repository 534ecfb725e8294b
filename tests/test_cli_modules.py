"""`hybridqa modules` and `--plugin` as a user meets them: imported, listed, shown, asked with, removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hybridqa.catalog import Catalog
from hybridqa.cli import app
from hybridqa.cli.module_report import gate_rows, loose_lines, weight_rows
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest, write_manifest

Run = Callable[..., Result]
KETTLE = "Maren Holt designed the Lumen kettle in 2031."
QUESTION = "Who designed the Lumen kettle?"
WEIGHTS = {f"model.layers.{layer}.mlp.{name}": 0.5 + layer for layer in (0, 1) for name in ("up_proj", "down_proj")}
GATE = {"passed": True, "reason": "knows it", "questions": 9, "gain": 0.5, "gain_low": 0.25, "gain_high": 0.75}


@pytest.fixture
def run(tmp_path: Path, tiny_model: ModelFolder) -> Run:
    environment = {
        "HYBRIDQA_STORE": str(tmp_path / "store"),
        "HYBRIDQA_MODEL": str(tiny_model.path),
        "HYBRIDQA_ENGINE": "reference",
        "HYBRIDQA_MAX_MODEL_LEN": "512",
        "HYBRIDQA_MAX_ANSWER_TOKENS": "8",
    }

    def call(*words: object, stdin: str | None = None, **more: str) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], input=stdin, env={**environment, **more})

    assert call("init").exit_code == 0
    return call


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.strip().splitlines()
    return str(line)


@pytest.fixture
def folders(tmp_path: Path, tiny_model: ModelFolder, make_adapter: Callable[..., Path]) -> dict[str, Path]:
    made = {name: make_adapter(tmp_path / name, tiny_model, rank=4, strength=0.5) for name in ("style", "reader")}
    fields = {"module_id": "reader", "kind": "extractor", "collection": "x", "base_model": "tiny", "rank": 4}
    fields |= {"base_model_hash": tiny_model.hash, "alpha": 16, "targets": ["up_proj"], "metrics": {"gate": GATE}}
    write_manifest(made["reader"], Manifest(**fields, module_weights=WEIGHTS, serves={"passages": 4}))  # type: ignore[arg-type]
    return made


def test_a_plugin_from_its_folder_to_an_answer_and_away(run: Run, folders: dict[str, Path]) -> None:
    run("add", "-", "--id", "kettle", stdin=KETTLE)
    imported = json_of(run("modules", "import", folders["style"], "--kind", "instructions", "--json"))
    assert (imported["module_id"], imported["kind"], imported["state"]) == ("style", "instructions", "current")
    assert run("modules", "import", folders["reader"]).stdout == "imported  reader@1  (extractor, current)\n"
    lines = [line.split("\t")[:5] for line in run("modules").stdout.splitlines()]
    assert lines == [
        ["reader", "1", "extractor", "default", "current"],
        ["style", "1", "instructions", "default", "current"],
    ]
    answer = json_of(run("ask", QUESTION, "--plugin", "style", "--json"))
    assert answer["plugins"] == [{"module_id": "style", "version": 1, "weight": 1.0}]
    assert answer["extractor"] == {"module_id": "reader", "version": 1, "weight": 1.0}
    answer = json_of(run("ask", QUESTION, "--no-extractor", "--json"))
    assert (answer["plugins"], answer["extractor"]) == ([], None)
    assert (
        json_of(run("ask", QUESTION, "--json", HYBRIDQA_PLUGINS="style, other"))["plugins"][0]["module_id"] == "style"
    )
    told = run("ask", QUESTION, "--plugin", "style").stderr
    assert "plug-in style@1" in told and "extractor reader@1" in told
    chat = run("chat", "--plugin", "style", "--no-extractor", "--json", stdin=f"{QUESTION}\n/mode closed\n{QUESTION}\n")
    answers = [json.loads(line) for line in chat.stdout.splitlines()]
    assert [(said["mode"], len(said["plugins"]), said["extractor"]) for said in answers] == [
        ("hybrid", 1, None),
        ("closed", 1, None),
    ]
    assert "'nothing'" in error_of(run("ask", QUESTION, "--plugin", "nothing"))
    assert json_of(run("modules", "rm", "style", "--json")) == {"removed": ["style@1"]}
    assert run("modules", "rm", "reader").stdout == "removed   reader@1\n"
    assert json_of(run("modules", "--json")) == {"modules": []}
    assert "'style'" in error_of(run("modules", "rm", "style"))


def test_an_extractor_is_shown_with_its_weights_and_its_gate(run: Run, folders: dict[str, Path]) -> None:
    run("modules", "import", folders["reader"], "--id", "mine")
    found = json_of(run("modules", "show", "mine", "--json"))
    assert (found["module_weights"], found["serves"]) == (WEIGHTS, {"passages": 4})
    assert found["metrics"]["gate"] == GATE
    text = run("modules", "show", "mine").stdout
    for line in (
        "0\t0.500\t0.500\t0.500",
        "all\t0.500\t1.000\t1.500",
        "gain\t0.5\t0.25 to 0.75\t",
        "gate\tknows it\t\tpassed",
    ):
        assert line in text.splitlines()


def test_import_says_what_is_wrong_in_a_line(run: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    assert "--kind with one of" in error_of(run("modules", "import", folders["style"]))
    assert "is no folder" in error_of(run("modules", "import", tmp_path / "nowhere", "--kind", "examples"))
    assert "leave --kind out" in error_of(run("modules", "import", folders["reader"], "--kind", "examples"))
    assert "'nowhere'" in error_of(run("modules", "import", folders["reader"], "-c", "nowhere"))
    assert run("modules", "import", folders["style"], "--kind", "sermon").exit_code == 2


def test_a_document_s_module_is_removed_with_its_document(run: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    run("add", "-", "--id", "kettle", stdin=KETTLE)
    with Catalog.open(tmp_path / "store" / "indexes" / "default" / "catalog.sqlite3") as catalog:
        documents = catalog.document_hashes("default", ["kettle"])
    before = json.loads((folders["reader"] / "manifest.json").read_text())
    before |= {"kind": "document", "documents": documents, "module_weights": None, "files": {}}
    write_manifest(folders["reader"], Manifest(**before))
    module = json_of(run("modules", "import", folders["reader"], "--json"))
    assert module["documents"] == documents
    told = error_of(run("modules", "rm", module["module_id"]))
    assert "hybridqa rm" in told and "refresh --force" in told
    assert run("rm", "kettle").exit_code == 0
    assert json_of(run("modules", "--json")) == {"modules": []}


# The report of a gate, whatever it has measured


def test_numbers_get_their_intervals() -> None:
    gate = {
        **GATE,
        "with_passage_gain": 0.1,
        "with_passage_low": -0.2,
        "with_passage_high": 0.3,
        "with_passage_base": 2,
    }
    assert gate_rows(gate) == [
        ("questions", "9", "", ""),
        ("gain", "0.5", "0.25 to 0.75", ""),
        ("with passage gain", "0.1", "-0.2 to 0.3", ""),
        ("with passage base", "2", "", ""),
        ("gate", "knows it", "", "passed"),
    ]


@pytest.mark.parametrize("many", [dict, list])
def test_checks_have_verdicts_of_their_own(many: type) -> None:
    checks: Any = {
        "off_topic": {"passed": False, "value": 0.09, "low": 0.05, "high": 0.125, "reason": "drifts", "prompts": 30},
        "composition": {"passed": None, "effect": -0.5, "effect_low": -1.0, "effect_high": 0.0},
    }
    if many is list:
        checks = [{"name": name, **check} for name, check in checks.items()]
    rows = gate_rows({"passed": False, "reason": "off_topic", "checks": checks})
    shown = {row[0].rpartition("· ")[2].replace("_", " "): row[1:] for row in rows}
    assert shown["off topic"] == ("0.09 drifts", "0.05 to 0.125", "failed")
    assert shown["prompts"] == ("30", "", "")
    assert shown["gate"] == ("off_topic", "", "failed")
    [effect] = [row for row in rows if "-0.5" in row[1]]
    assert effect[2] == "-1 to 0"


def test_nothing_of_a_report_is_lost() -> None:
    gate = {
        "passed": True,
        "loose_low": 1.5,
        "loose_high": 2.5,
        "odd": None,
        "deep": {"deeper": {"deepest": 0.125}},
        "l": [1, 2],
    }
    text = json.dumps(gate_rows(gate))
    assert all(part in text for part in ("loose", "1.5 to 2.5", "odd", "None", "deepest", "0.125", "1, 2"))
    assert gate_rows(None) == gate_rows("no report") == []
    metrics = {"gate": GATE, "reason": "knows it", "seconds": {"total": 3.25}}
    assert loose_lines(metrics) == ["seconds          total 3.25"]
    assert len(loose_lines({**metrics, "reason": "another"})) == 2


def test_weights_by_layer_are_in_the_model_s_order() -> None:
    weights = {f"model.layers.{layer}.mlp.up_proj": float(layer) for layer in (10, 9, 0)} | {"lm_head": 2.0}
    assert [row[0] for row in weight_rows(weights)] == ["0", "9", "10", "lm_head", "all"]
    assert weight_rows(weights)[-1] == ("all", "0.000", "5.250", "10.000")
