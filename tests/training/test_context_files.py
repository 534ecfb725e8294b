"""Files of instructions, examples, scratchpads and questions: what is taken, and how each bad line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridqa.errors import InputError
from hybridqa.training.context_files import SHOWN, Scratchpad, read_context, read_questions
from hybridqa.types import Message, ModuleKind

EXAMPLES, SCRATCHPAD, INSTRUCTIONS = ModuleKind.EXAMPLES, ModuleKind.SCRATCHPAD, ModuleKind.INSTRUCTIONS


def written(folder: Path, *lines: object) -> Path:
    path = folder / "file.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_instructions_are_the_text(tmp_path: Path) -> None:
    path = tmp_path / "style.md"
    path.write_bytes(b"\xef\xbb\xbfAnswer in rhyme.\n\nAlways.\n")
    assert read_context(INSTRUCTIONS, path).instructions == "Answer in rhyme.\n\nAlways."


def test_examples_in_their_three_forms(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    path = written(
        tmp_path,
        {"question": "Who?", "answer": "Anna\u2028Voss"},  # a character that `splitlines` takes for a line's end
        "",
        {"input": "2+2", "output": "4"},
        {"messages": chat},
    )
    assert read_context(EXAMPLES, path).examples == (
        (Message("user", "Who?"), Message("assistant", "Anna\u2028Voss")),
        (Message("user", "2+2"), Message("assistant", "4")),
        (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b")),
    )


def test_scratchpads_with_reasoning_and_without(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "2+2?", "reasoning": "Two and two.", "answer": "4"}, {"question": "Why?"})
    assert read_context(SCRATCHPAD, path).scratchpads == (Scratchpad("2+2?", "Two and two.", "4"), Scratchpad("Why?"))


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        (EXAMPLES, "{", "line 2: no JSON"),
        (EXAMPLES, "[" * 100_000, "line 2: JSON nested too deep"),
        (EXAMPLES, "[1]", "line 2: no JSON object but '[1]'"),
        (EXAMPLES, {"question": "Who?"}, "line 2: no 'answer' among ['question']"),
        (EXAMPLES, {"input": "Who?", "output": " "}, "line 2: 'output' is ' ', no text"),
        (EXAMPLES, {"question": 3, "answer": "x"}, "line 2: 'question' is 3, no text"),
        (EXAMPLES, '{"question": "\\ud800", "answer": "x"}', "line 2: 'question' has '\\ud800'"),
        (EXAMPLES, {"messages": "hello"}, "line 2: 'messages' is 'hello', no list of turns"),
        (EXAMPLES, {"messages": [{"role": "user", "content": "a"}]}, "line 2: the turns are ['user']"),
        (EXAMPLES, {"messages": [{"role": "tool", "content": "a"}]}, "line 2: turn 1 has the role 'tool'"),
        (EXAMPLES, {"messages": [{"role": "user"}]}, "line 2: turn 1: no 'content'"),
        (EXAMPLES, {"messages": []}, "line 2: the turns are []"),
        (SCRATCHPAD, {"question": "Who?", "reasoning": "Hm."}, "line 2: no 'answer'"),
        (SCRATCHPAD, {"question": "Who?", "answer": "Anna"}, "line 2: an 'answer' without 'reasoning'"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(tmp_path: Path, kind: ModuleKind, line: object, said: str) -> None:
    good = {"question": "Who?", "reasoning": "r", "answer": "a"}
    path = written(tmp_path, good, line)
    with pytest.raises(InputError) as caught:
        read_context(kind, path)
    message = str(caught.value)
    assert said in message and repr(str(path)) in message and 'Expected on each line {"question"' in message


def test_many_bad_lines_are_named_and_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"line 1: .*line {SHOWN}: .*and 2 more lines") as caught:
        read_context(EXAMPLES, written(tmp_path, *["x"] * (SHOWN + 2)))
    assert f"line {SHOWN + 1}:" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path / "no", "No such file"), (tmp_path, "Is a dir"), (empty, "empty"), (binary, "UTF-8")):
        for kind in (INSTRUCTIONS, EXAMPLES, SCRATCHPAD):
            with pytest.raises(InputError, match=said):
                read_context(kind, path)


def test_questions_as_lines_or_json_lines_each_once(tmp_path: Path) -> None:
    assert read_questions(written(tmp_path, "Who is  it?", "", "Why?", "Who is it?")) == ("Who is it?", "Why?")
    assert read_questions(written(tmp_path, {"question": "Who?"}, {"question": "Why?"})) == ("Who?", "Why?")
    with pytest.raises(InputError, match="line 2: no 'question'"):
        read_questions(written(tmp_path, {"question": "Who?"}, {"ask": "Why?"}))


def test_a_digest_is_of_all_that_is_said(tmp_path: Path) -> None:
    lines = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
    first = read_context(EXAMPLES, written(tmp_path, *lines)).digest
    assert read_context(EXAMPLES, written(tmp_path, "", *lines)).digest == first
    assert read_context(EXAMPLES, written(tmp_path, *reversed(lines))).digest != first
    changed = {"question": "a", "answer": "B"}
    assert read_context(EXAMPLES, written(tmp_path, changed, lines[1])).digest != first
