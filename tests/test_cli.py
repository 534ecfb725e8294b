"""The command line as a user meets it: what it prints where, what it exits with, what it does to a store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hybridqa import __version__
from hybridqa.catalog import Catalog
from hybridqa.cli import app
from hybridqa.files import storage_full
from hybridqa.models import ModelFolder

ROOT = Path(__file__).parent.parent
COMMANDS = "init add rm ls ask chat serve keys refresh distill train-extractor modules doctor".split()
KETTLE = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar."
)
BRIDGE = "Anna Voss built the Tarn bridge for 40,000 crowns. The Tarn bridge is painted dark green."
Run = Callable[..., Result]


@pytest.fixture
def environment(tmp_path: Path, tiny_model: ModelFolder) -> dict[str, str]:
    """A store of its own, the tiny model and the reference engine: what is tested is the command line."""
    return {
        "HYBRIDQA_STORE": str(tmp_path / "store"),
        "HYBRIDQA_MODEL": str(tiny_model.path),
        "HYBRIDQA_ENGINE": "reference",
        "HYBRIDQA_MAX_MODEL_LEN": "512",
        "HYBRIDQA_MAX_ANSWER_TOKENS": "8",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Runs a command in this process."""

    def call(*words: object, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=environment)

    return call


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two documents in a folder, one of them in a folder below."""
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    (folder / "kettle.txt").write_text(KETTLE)
    (folder / "below" / "bridge.md").write_text(f"# Tarn bridge\n\n{BRIDGE}\n")
    return folder


@pytest.fixture
def filled(run: Run, files: Path) -> Path:
    """The folder of documents, all of them in the store."""
    assert run("init").exit_code == 0
    assert run("add", files).exit_code == 0
    return files


def one_line_error(result: Result) -> str:
    """The error that a command ended with: a single line on standard error, and nothing else anywhere."""
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def start(environment: dict[str, str], *words: str, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, which takes Ctrl-C even where whoever runs the tests has switched it off."""
    return subprocess.Popen(
        [sys.executable, "-m", "hybridqa", *words],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# Help


def test_help_names_every_command(run: Run) -> None:
    text = run("--help").stdout
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [[name] for name in COMMANDS]
    + [["modules", name] for name in ("list", "show", "import", "rm", "rollback")]
    + [["keys", name] for name in ("list", "add", "rm")],
)
def test_every_command_has_help_and_json(run: Run, words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize("words", [["--help"], ["add", "--help"], ["--version"], ["refresh", "--no-such-option"]])
def test_what_needs_no_model_loads_none(words: list[str]) -> None:
    heavy = ["torch", "vllm", "faiss", "transformers", "numpy", "sentence_transformers"]
    code = (
        "import sys\nfrom hybridqa.cli import main\n"
        f"sys.argv = ['hybridqa', *{words}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded', [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "loaded []" in done.stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"hybridqa {__version__}\n"


# The store and its documents


def test_init_makes_a_store_once_and_leaves_it_alone_after(run: Run, tmp_path: Path) -> None:
    result = run("--store", tmp_path / "other", "--name", "mine", "init", "--json")
    made = json.loads(result.stdout)
    assert made["store"] == str(tmp_path / "other")
    catalog = tmp_path / "other" / "indexes" / "mine" / "catalog.sqlite3"
    assert made["catalog"] == str(catalog)
    assert catalog.is_file()
    (tmp_path / "other" / "hybridqa.toml").write_text("passages = 2\n")
    assert run("--store", tmp_path / "other", "--name", "mine", "init").exit_code == 0
    assert (tmp_path / "other" / "hybridqa.toml").read_text() == "passages = 2\n"


@pytest.mark.parametrize("words", [["ls"], ["add", "x.txt"], ["ask", "Who?"], ["rm", "x"], ["modules"], ["refresh"]])
def test_without_a_store_every_command_says_how_to_make_one(run: Run, words: list[str]) -> None:
    assert re.search(r"no store 'default'.*hybridqa --store \S+ init", one_line_error(run(*words)))


def test_add_reports_each_document(run: Run, files: Path) -> None:
    run("init")
    first = json.loads(run("add", files, "--json").stdout)
    assert first["failed"] == []
    assert [(entry["doc_id"], entry["result"], entry["collection"]) for entry in first["results"]] == [
        ("below/bridge.md", "added", "default"),
        ("kettle.txt", "added", "default"),
    ]
    (files / "kettle.txt").write_text(KETTLE + " It costs 89 euros.")
    again = run("add", files)
    assert again.exit_code == 0
    assert [line.split()[:2] for line in again.stdout.splitlines()] == [
        ["unchanged", "below/bridge.md"],
        ["replaced", "kettle.txt"],
    ]


def test_add_takes_an_id_a_title_and_a_collection(run: Run, files: Path) -> None:
    run("init")
    assert run("add", files / "kettle.txt", "--id", "k", "--title", "The kettle", "-c", "tools").exit_code == 0
    assert run("add", "-", "--id", "typed", stdin="Ümlauts come from standard input.").exit_code == 0
    listed = json.loads(run("ls", "--json").stdout)
    assert listed["collections"] == ["default", "tools"]
    assert [(entry["doc_id"], entry["collection"], entry["title"]) for entry in listed["documents"]] == [
        ("typed", "default", ""),
        ("k", "tools", "The kettle"),
    ]
    assert [entry["doc_id"] for entry in json.loads(run("ls", "-c", "tools", "--json").stdout)["documents"]] == ["k"]


def test_add_goes_on_after_bad_files_and_names_each(run: Run, files: Path) -> None:
    run("init")
    (files / "empty.txt").write_text("")
    (files / "noise.txt").write_bytes(bytes(range(256)) * 40)
    result = run("add", files, files / "missing.txt", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [entry["doc_id"] for entry in report["results"]] == ["below/bridge.md", "kettle.txt"]
    assert [Path(entry["path"]).name for entry in report["failed"]] == ["empty.txt", "noise.txt", "missing.txt"]
    assert all(name in result.stderr for name in ("empty.txt", "noise.txt", "missing.txt", "3 of 5"))
    assert run("add", files / "missing.txt").exit_code == 1


def test_two_files_of_one_name_do_not_replace_each_other(run: Run, files: Path) -> None:
    run("init")
    (files / "below" / "kettle.txt").write_text("Another kettle altogether.")
    result = run("add", files / "kettle.txt", files / "below" / "kettle.txt")
    assert result.exit_code == 1
    assert result.stderr.count("'kettle.txt'") == 2
    assert json.loads(run("ls", "--json").stdout)["documents"] == []


@pytest.mark.parametrize("words", [["--id", "x"], ["--title", "x"]])
def test_one_id_is_for_one_file(run: Run, files: Path, words: list[str]) -> None:
    run("init")
    assert "for one file" in one_line_error(run("add", files, *words))


def test_metadata_given_by_add_filters_what_ask_finds(run: Run, files: Path) -> None:
    run("init")
    kettle = ["--meta", "team=kitchen", "--meta", "year=2031", "--meta", "date=2031-03-08"]
    assert run("add", files / "kettle.txt", *kettle).exit_code == 0
    assert run("add", files / "below" / "bridge.md", "--meta", "team=works", "--meta", "year=2029").exit_code == 0

    def found(*words: str) -> set[str]:
        answer = json.loads(
            run("ask", "Who designed the Lumen kettle?", "--mode", "retrieval", "--json", *words).stdout
        )
        return {passage["doc_id"] for passage in answer["passages"]}

    assert "kettle.txt" in found()
    assert found("--document", "bridge.md") <= {"bridge.md"}
    assert found("--where", "team=kitchen", "--where", "team=garden") == {"kettle.txt"}
    assert found("--where", "team=kitchen", "--where", "year=2031") == {"kettle.txt"}
    assert found("--where", 'year="2031"') == set()  # a text, not the number
    assert found("--since", "2031-03-08", "--until", "2031-03-08") == {"kettle.txt"}
    assert found("--until", "2001-01-01") == set()
    chatted = run("chat", "--document", "nobody's", "--json", stdin="Who designed the Lumen kettle?\n")
    assert json.loads(chatted.stdout)["abstained"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "Who?", "--where", "team"], "--where 'team' is no KEY=VALUE"),
        (["ask", "Who?", "--since", "spring"], "since='spring' is no date"),
        (["chat", "--until", "31.12.2031"], "until='31.12.2031' is no date"),
        (["add", "x.txt", "--meta", "=3"], "--meta '=3' is no KEY=VALUE"),
        (["add", "x.txt", "--meta", "a=1", "--meta", "a=2"], "--meta 'a' is given twice"),
    ],
)
def test_a_filter_that_is_none_is_one_line(run: Run, words: list[str], message: str) -> None:
    run("init")
    assert message in one_line_error(run(*words))


def test_ls_prints_tabs_into_a_pipe(run: Run, filled: Path) -> None:
    lines = [line.split("\t") for line in run("ls").stdout.splitlines()]
    assert [(line[0], line[1], line[3], line[4]) for line in lines] == [
        ("below/bridge.md", "default", "1", "none"),
        ("kettle.txt", "default", "1", "none"),
    ]


def test_rm_on_a_full_disk_says_that_the_documents_are_gone(
    run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(catalog: Catalog) -> None:
        raise storage_full(catalog.path)

    monkeypatch.setattr(Catalog, "compact", full)
    result = run("rm", "kettle.txt", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"removed": ["kettle.txt"], "failed": []}
    assert "the documents are removed" in result.stderr
    assert "kettle.txt" not in run("ls").stdout


def test_a_path_that_is_none(run: Run, filled: Path) -> None:
    assert "too long" in one_line_error(run("add", "word " * 100, "--title", "x"))
    result = run("add", "word " * 100, "--json")
    assert result.exit_code == 1
    assert "too long" in json.loads(result.stdout)["failed"][0]["error"]


def test_rm_removes_what_is_there_and_names_what_is_not(run: Run, filled: Path) -> None:
    result = run("rm", "kettle.txt", "nothing.txt", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["removed"] == ["kettle.txt"]
    assert "'nothing.txt'" in result.stderr
    assert [entry["doc_id"] for entry in json.loads(run("ls", "--json").stdout)["documents"]] == ["below/bridge.md"]


def test_an_unknown_collection(run: Run, filled: Path) -> None:
    for words in (["ls", "-c", "x"], ["ask", "Who?", "-c", "x"], ["modules", "-c", "x"], ["refresh", "-c", "x"]):
        assert "'x'" in one_line_error(run(*words))


def test_options_before_a_command_of_modules_are_its_own(run: Run, filled: Path) -> None:
    assert json.loads(run("modules", "--json", "list").stdout) == {"modules": []}
    assert json.loads(run("modules", "--collection", "default", "list", "--json").stdout) == {"modules": []}
    for words in (["list"], ["show", "m"], ["rollback", "m"]):
        assert "'nope'" in one_line_error(run("modules", "--collection", "nope", *words))
    assert run("modules", "--collection", "nope", "list", "--collection", "default").exit_code == 0


# Questions


def test_ask_json_is_the_documented_object(run: Run, filled: Path) -> None:
    result = run("ask", "Who designed the Lumen kettle?", "--mode", "retrieval", "--k", "1", "--json")
    answer = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert set(answer) >= {
        "answer",
        "abstained",
        "mode",
        "citations",
        "passages",
        "modules",
        "timings",
        "usage",
    }
    assert answer["mode"] == "retrieval"
    [passage] = answer["passages"]
    assert passage["number"] == 1
    assert passage["doc_id"] == "kettle.txt"
    assert passage["text"] == KETTLE[passage["start"] : passage["end"]]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert answer["timings"]["total"] > 0
    assert answer["modules"] == []


def test_ask_explains_what_was_found_and_decided(run: Run, filled: Path) -> None:
    words = ("ask", "Who built the Tarn bridge?", "--rerank", 2, "--hops", 2, "--explain")
    told = json.loads(run(*words, "--json").stdout)["explanation"]
    assert [found["doc_id"] for found in told["found"]] == ["below/bridge.md", "kettle.txt"]
    first = told["found"][0]
    assert first["source"] == 1 and first["coverage"] == 1.0 and first["title"] > 0 and first["likelihood"] < 0
    assert list(told["evidence"]) == ["below/bridge.md", "kettle.txt"]
    assert told["modules"] == [] and told["mode"] == "hybrid"
    hop = "hop 2: searched with what 'Tarn bridge' and 'kettle' say; "
    reason = f"{hop}2 passages reranked; 2 passages of 2 documents; no module for these documents"
    assert told["reason"].startswith(reason)
    assert told["seconds"]["rerank"] > 0 and told["seconds"]["hops"] > 0 and first["linked"] >= 0
    shown = run(*words).stdout
    assert f"route: {hop}2 passages reranked;" in shown and "below/bridge.md" in shown and "rerank" in shown
    assert "explanation" not in json.loads(run("ask", "Who built the Tarn bridge?", "--json").stdout)


def test_a_question_comes_from_standard_input(run: Run, filled: Path) -> None:
    first = json.loads(run("ask", "-", "--json", stdin="Who built the Tarn bridge?\n").stdout)
    assert first["question"] == "Who built the Tarn bridge?"
    assert first["passages"][0]["doc_id"] == "below/bridge.md"


def test_a_stream_says_what_the_answer_says(run: Run, filled: Path) -> None:
    question = "Who designed the Lumen kettle?"
    lines = [json.loads(line) for line in run("ask", question, "--stream", "--json").stdout.splitlines()]
    *deltas, last = lines
    assert deltas
    assert last["answer"] == json.loads(run("ask", question, "--json").stdout)["answer"]
    streamed = run("ask", question, "--stream")
    assert "".join(delta["delta"] for delta in deltas).strip() in streamed.stdout


@pytest.mark.parametrize(
    ("question", "expected"), [("", "empty"), ("  ", "empty"), ("why " * 600, "at most 504 tokens")]
)
def test_a_bad_question_is_one_line(run: Run, filled: Path, question: str, expected: str) -> None:
    assert expected in one_line_error(run("ask", question))


def test_an_unknown_mode_is_a_usage_error(run: Run, filled: Path) -> None:
    result = run("ask", "Who?", "--mode", "psychic")
    assert result.exit_code == 2
    assert "psychic" in result.stderr
    assert result.stdout == ""


def test_chat_reads_a_script(run: Run, filled: Path) -> None:
    """Piped input: each line a question, commands between; the history makes the prompt longer."""
    second = "And what colour is it?"
    script = f"Who built the Tarn bridge?\n\n/mode closed\n{second}\n/clear\n{second}\n/quit\nNever."
    result = run("chat", "--json", stdin=script)
    assert result.exit_code == 0
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(answer["question"], answer["mode"]) for answer in answers] == [
        ("Who built the Tarn bridge?", "hybrid"),
        ("And what colour is it?", "closed"),
        ("And what colour is it?", "closed"),
    ]
    assert answers[1]["usage"]["prompt_tokens"] > answers[2]["usage"]["prompt_tokens"]
    assert answers[1]["passages"] == []


def test_chat_has_follow_ups_restated_where_asked_to(run: Run, filled: Path) -> None:
    """By a model of random weights: what it writes is refused, and said so."""
    script = "Who built the Tarn bridge?\nAnd what colour is it?\n"
    first, second = (json.loads(line) for line in run("chat", "--rewrite", "--json", stdin=script).stdout.splitlines())
    assert "rewritten" not in first["reason"] and second["reason"].startswith("not rewritten: ")
    assert "; searched with the question before it; " in second["reason"] and second["timings"]["rewrite"] > 0
    plain = [json.loads(line) for line in run("chat", "--no-rewrite", "--json", stdin=script).stdout.splitlines()]
    assert plain[1]["reason"].startswith("searched with the question before it; ")


def test_chat_goes_on_after_a_bad_line(run: Run, filled: Path) -> None:
    result = run("chat", "--json", stdin="/mode psychic\n" + "why " * 600 + "\nWho built the Tarn bridge?\n")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert "psychic" in result.stderr
    assert "at most 504 tokens" in result.stderr


# Modules


def test_refresh_and_the_modules_that_it_makes(run: Run, filled: Path, environment: dict[str, str]) -> None:
    """The tiny model learns nothing, so that its gate rejects the module, and the commands show so."""
    environment |= {"HYBRIDQA_TRAIN_STEPS": "2", "HYBRIDQA_LEARNING_RATE": "1e-9"}
    result = run("refresh", "kettle.txt", "--json")
    assert result.exit_code == 0, result.stderr
    [outcome] = json.loads(result.stdout)["outcomes"]
    assert (outcome["doc_id"], outcome["state"]) == ("kettle.txt", "rejected")
    assert "train" in result.stderr
    [module] = json.loads(run("modules", "--json").stdout)["modules"]
    assert json.loads(run("modules", "list", "--json").stdout)["modules"] == [module]
    assert (module["version"], module["state"], list(module["documents"])) == (1, "rejected", ["kettle.txt"])
    shown = json.loads(run("modules", "show", module["module_id"], "--json").stdout)
    assert shown["metrics"]["reason"] == outcome["reason"]
    assert "rejected" in one_line_error(run("modules", "rollback", module["module_id"], "--version", "1"))
    states = {entry["doc_id"]: entry["module"] for entry in json.loads(run("ls", "--json").stdout)["documents"]}
    assert states == {"below/bridge.md": "none", "kettle.txt": "rejected"}


def test_an_unknown_module(run: Run, filled: Path) -> None:
    for words in (["modules", "show", "x"], ["modules", "rollback", "x"]):
        assert "'x'" in one_line_error(run(*words))


def test_the_vectors_are_made_anew(run: Run, filled: Path, environment: dict[str, str]) -> None:
    store = Path(environment["HYBRIDQA_STORE"])
    with Catalog.open(store / "indexes" / "default" / "catalog.sqlite3") as catalog:
        fingerprint = catalog.embedder_fingerprint()
        ids, vectors_N_D = catalog.vectors()
        catalog.replace_embeddings([(ids, vectors_N_D[:, ::-1].copy())], "another")
    assert "refresh --embeddings" in one_line_error(run("ask", "Who?"))
    assert "expected it alone" in one_line_error(run("refresh", "--embeddings", "--force"))
    assert json.loads(run("refresh", "--embeddings", "--json").stdout) == {"passages": 2, "embedder": fingerprint}
    assert run("ask", "Who?").exit_code == 0


# Errors, interrupts and streams


def test_a_broken_catalog_is_one_line_and_a_traceback_only_when_asked_for(
    run: Run, filled: Path, environment: dict[str, str]
) -> None:
    catalog = Path(environment["HYBRIDQA_STORE"]) / "indexes" / "default" / "catalog.sqlite3"
    catalog.write_bytes(b"no database" * 500)
    for extra in ("-wal", "-shm"):
        catalog.with_name(catalog.name + extra).unlink(missing_ok=True)
    assert "catalog.sqlite3" in one_line_error(run("ls"))
    shown = run("--debug", "ls")
    assert shown.exit_code == 2
    assert "Traceback" in shown.stderr


def test_a_bad_setting_is_one_line(run: Run, filled: Path, environment: dict[str, str]) -> None:
    (Path(environment["HYBRIDQA_STORE"]) / "hybridqa.toml").write_text("pasages = 3\n")
    assert "'pasages'" in one_line_error(run("ls"))


def test_a_bug_of_ours_is_one_line_as_well() -> None:
    """Whatever a command raises that nobody meant to raise."""
    from typer import Typer

    from hybridqa.cli.context import command

    broken = Typer()

    @broken.command()
    @command
    def divide() -> None:
        1 / 0  # noqa: B018

    assert "unexpected ZeroDivisionError" in one_line_error(CliRunner().invoke(broken))


def test_others_cannot_write_to_a_claimed_standard_output() -> None:
    code = (
        "import os, sys\nfrom hybridqa.cli import output\noutput.claim_stdout()\n"
        "print('python')\nsys.stdout.flush()\nos.write(1, b'native')\noutput.say_json({'only': 'this'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '{"only": "this"}\n'
    assert done.stderr.split() == ["python", "native"]


def test_a_real_process_prints_json_alone_and_is_stopped_quietly(filled: Path, environment: dict[str, str]) -> None:
    """A chat with its model loaded, stopped by Ctrl-C while it waits for a line."""
    running = start(environment, "chat", "--json", stdin=subprocess.PIPE)
    try:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write("Who designed the Lumen kettle?\n")
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["passages"][0]["doc_id"] == "kettle.txt"
        time.sleep(2)  # it is back at its input
        running.send_signal(signal.SIGINT)
        running.wait(timeout=60)  # before its input ends, which would end it too
    finally:
        running.kill()
        rest, errors = running.communicate()
    assert running.returncode == 130
    assert rest == ""
    assert "Traceback" not in errors
    assert "error" not in errors


# Extractors


def test_train_extractor_refuses_bad_data_with_one_line(run: Run, filled: Path, tmp_path: Path) -> None:
    docs, questions = tmp_path / "docs.jsonl", tmp_path / "questions.jsonl"
    docs.write_text(json.dumps({"doc_id": "tower", "text": "The tower was built by Nils Aker."}))
    questions.write_text(json.dumps({"qid": "1", "question": "Who?", "answers": ["Nils Aker"], "doc_ids": ["gate"]}))
    words = ("train-extractor", "--docs", docs, "--questions", questions)
    assert "'gate' is none of them" in one_line_error(run(*words, "--json"))
    questions.write_text(json.dumps({"qid": "1", "question": "Who?", "answers": ["Nils Aker"], "doc_ids": ["tower"]}))
    assert "expected at least 3" in one_line_error(run(*words))
    assert run("train-extractor").exit_code == 2
    both = run(*words, "--no-modules", "--module-documents", 3)
    assert "--module-documents 3 was given with --no-modules" in one_line_error(both)
