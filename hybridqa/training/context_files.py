"""What a plug-in is distilled from, as its user wrote it: instructions, examples or scratchpads; and questions.

Knows nothing about models or training. Invariant: a file is taken whole, or refused with its bad lines named; the
digest of a context changes when anything in it does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hybridqa.errors import InputError
from hybridqa.types import Message, ModuleKind

MAX_BYTES = 20_000_000
SHOWN = 5  # bad lines that an error names
ROLES = ("system", "user", "assistant")
_EXAMPLE = '{"question": …, "answer": …}, {"input": …, "output": …} or {"messages": [{"role": …, "content": …}, …]}'
_SCRATCHPAD = '{"question": …, "reasoning": …, "answer": …}, or {"question": …} alone'
Line = TypeVar("Line")


@dataclass(frozen=True, slots=True)
class Scratchpad:
    """A question with the reasoning that leads to its answer; both are empty where the engine is to write them."""

    question: str
    reasoning: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What the teacher has in its prompt and the student has not; of the three parts, that of its kind is filled."""

    kind: ModuleKind
    instructions: str = ""
    examples: tuple[tuple[Message, ...], ...] = ()  # each ends with the assistant's turn
    scratchpads: tuple[Scratchpad, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 hex of all that it says."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_context(kind: ModuleKind, path: Path) -> Context:
    """Reads the file of a context. Raises `InputError` naming the file and each bad line."""
    if kind is ModuleKind.INSTRUCTIONS:
        return Context(kind, instructions=_read(path, "a text such as a style guide").strip())
    if kind is ModuleKind.EXAMPLES:
        return Context(kind, examples=_lines(path, _example, _EXAMPLE))
    return Context(kind, scratchpads=_lines(path, _scratchpad, _SCRATCHPAD))


def read_questions(path: Path) -> tuple[str, ...]:
    """Questions, one a line, or JSON lines with "question"; a question that comes again is left out.

    Raises `InputError` naming the file and each bad line.
    """
    expected = 'a question on each line, or JSON lines with "question"'
    text = _read(path, expected)
    if text.lstrip().startswith("{"):
        found = _lines(path, lambda line: _text(_object(line), "question"), '{"question": …}')
    else:
        found = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return tuple(dict.fromkeys(found))


def _read(path: Path, expected: str) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{str(path)!r} is larger than {MAX_BYTES / 1e6:g} MB; expected {expected}.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}; expected {expected}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not in UTF-8: {error}. Save it as UTF-8.") from error
    if not text.strip():
        raise InputError(f"{str(path)!r} is empty; expected {expected}.")
    return text


def _lines(path: Path, read: Callable[[str], Line], expected: str) -> tuple[Line, ...]:
    """Each line that is not blank, as `read` takes it; `read` raises `ValueError` with what is wrong."""
    found: list[Line] = []
    bad: list[str] = []
    # Not `splitlines`: JSON may hold characters that it takes for the end of a line.
    for number, line in enumerate(_read(path, f"JSON lines of {expected}").split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(read(line))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - SHOWN} more lines" if len(bad) > SHOWN else ""
        raise InputError(f"{str(path)!r}, {'; '.join(bad[:SHOWN])}{more}. Expected on each line {expected}.")
    return tuple(found)


def _object(line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"no JSON object but {line.strip()[:40]!r}")  # noqa: TRY004  # as for all that a line may be
    return value


def _text(value: Mapping[str, Any], name: str) -> str:
    """A field that must be a text with something in it."""
    if name not in value:
        raise ValueError(f"no {name!r} among {sorted(value)}")
    found = value[name]
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{name!r} is {found!r}, no text")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} has {found[error.start]!r}, which is no valid Unicode") from error
    return found.strip()


def _example(line: str) -> tuple[Message, ...]:
    value = _object(line)
    if "messages" in value:
        return _conversation(value["messages"])
    asked, answered = ("input", "output") if "input" in value else ("question", "answer")
    return Message("user", _text(value, asked)), Message("assistant", _text(value, answered))


def _conversation(turns: Any) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"'messages' is {turns!r:.60}, no list of turns")
    messages = []
    for place, turn in enumerate(turns, 1):
        if turn.get("role") not in ROLES:
            raise ValueError(f"turn {place} has the role {turn.get('role')!r}, none of {', '.join(ROLES)}")
        try:
            messages.append(Message(turn["role"], _text(turn, "content")))
        except ValueError as error:
            raise ValueError(f"turn {place}: {error}") from error
    spoken = [turn.role for turn in messages if turn.role != "system"]
    if spoken[:1] != ["user"] or spoken[-1] != "assistant":
        raise ValueError(f"the turns are {spoken}, not from a user's to an assistant's")
    return tuple(messages)


def _scratchpad(line: str) -> Scratchpad:
    value = _object(line)
    question = _text(value, "question")
    if "reasoning" not in value:
        if "answer" in value:
            raise ValueError("an 'answer' without 'reasoning'")
        return Scratchpad(question)
    return Scratchpad(question, _text(value, "reasoning"), _text(value, "answer"))
