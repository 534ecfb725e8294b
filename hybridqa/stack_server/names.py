"""What a vLLM server is asked for as `model`: a stack that people wrote down, or one that a gateway has composed.

Knows nothing about stores or vLLM. Invariant: names that mean the same modules with the same weights have one text
(`str`), in whatever order and form they were written.

    stack:lumen-kettle-md-81ba3506a696@1                     one module's version, of the collection "default"
    stack:team%20b/house-style@2*0.5+manual-0123456789ab@3   of the collection "team b", the first at half its weight
    stack:3f2a…                                              32 hex digits: the composed stack `stack-3f2a…`
    stack:about                                              no stack; the refusal says what the server serves
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import quote, unquote

from hybridqa.errors import InputError
from hybridqa.types import DEFAULT_COLLECTION

PREFIX = "stack:"
ABOUT = f"{PREFIX}about"
LONGEST = 2000  # characters
LEAST, MOST = 0.001, 100.0  # of a weight, whatever its sign
_COMPOSED = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"(?P<id>[a-z0-9][a-z0-9._-]{0,99})@(?P<version>[1-9][0-9]{0,8})(?:\*(?P<weight>[^*]+))?")
_FORM = f"expected '{PREFIX}[COLLECTION/]MODULE@VERSION[*WEIGHT]+…', as `hybridqa modules` lists them"


@dataclass(frozen=True, slots=True, order=True)
class NamedPart:
    """One version of a module, and what multiplies it."""

    module_id: str
    version: int
    weight: float = 1.0

    def __str__(self) -> str:
        weight = "" if self.weight == 1.0 else f"*{self.weight!r}".removesuffix(".0")
        return f"{self.module_id}@{self.version}{weight}"


@dataclass(frozen=True, slots=True)
class NamedStack:
    """A stack as people write it."""

    collection: str
    parts: tuple[NamedPart, ...]  # sorted

    def __str__(self) -> str:
        scope = "" if self.collection == DEFAULT_COLLECTION else f"{quote(self.collection, safe='')}/"
        return f"{PREFIX}{scope}{'+'.join(map(str, self.parts))}"


@dataclass(frozen=True, slots=True)
class ComposedStack:
    """A stack that lies composed in the store, with a record of its modules and the weight of each layer."""

    folder: str  # the name of the stack and of its folder

    def __str__(self) -> str:
        return name_of(self.folder)


def name_of(folder: str) -> str:
    """The name to ask a server for a composed stack by. Raises `InputError` for what is none."""
    digest = folder.removeprefix("stack-")
    if digest == folder or not _COMPOSED.fullmatch(digest):
        raise InputError(
            f"{folder!r} is no composed stack; expected 'stack-' and 32 hex digits, as StackCache names it."
        )
    return f"{PREFIX}{digest}"


def parse(name: str) -> NamedStack | ComposedStack:
    """What a name that begins with `PREFIX` stands for. Raises `InputError`."""
    text = name.removeprefix(PREFIX)
    if text == name or len(name) > LONGEST:
        raise InputError(f"{name[:80]!r} names no stack; {_FORM} (at most {LONGEST} characters).")
    if _COMPOSED.fullmatch(text):
        return ComposedStack(f"stack-{text}")
    scope, slash, listed = text.rpartition("/")
    collection = unquote(scope, errors="replace") if slash else DEFAULT_COLLECTION
    if slash and (not scope or quote(collection, safe="") != scope):
        raise InputError(f"{scope!r} is no collection's name in a stack's; write it as {quote(collection, safe='')!r}.")
    parts = sorted(_part(part, name) for part in listed.split("+"))
    for before, after in pairwise(parts):
        if (before.module_id, before.version) == (after.module_id, after.version):
            raise InputError(f"{name!r} has '{after.module_id}@{after.version}' twice; expected each module once.")
    return NamedStack(collection, tuple(parts))


def _part(text: str, name: str) -> NamedPart:
    match = _PART.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} in {name!r} is no part of a stack; {_FORM}.")
    weight = 1.0 if match["weight"] is None else _weight(match["weight"], name)
    return NamedPart(match["id"], int(match["version"]), weight)


def _weight(text: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not LEAST <= abs(weight) <= MOST:
        raise InputError(
            f"{text!r} in {name!r} is no weight; expected a number from {LEAST} to {MOST:g}, or the same below zero."
        )
    return weight


def about(base_model_hash: str, max_lora_rank: int | None) -> str:
    """What a server says of itself where it is asked for `ABOUT`."""
    return f"no stack, but what this server has: {json.dumps({'base': base_model_hash, 'rank': max_lora_rank})}"


def read_about(text: str) -> tuple[str, int | None] | None:
    """The hash and the rank in what `about` gave, wherever it stands in `text`; None for any other text."""
    match = re.search(r'what this server has: (\{"base": "[0-9a-f]{64}", "rank": (?:null|\d+)\})', text)
    if match is None:
        return None
    found = json.loads(match[1])
    return found["base"], found["rank"]
