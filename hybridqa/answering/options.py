"""How a question is to be answered: the options of `ask`, and what is refused among them.

Knows nothing about how any of them is followed. Invariant: a name that is no option is an error, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from hybridqa.engine.protocol import Sampling
from hybridqa.errors import QuestionError
from hybridqa.types import Filter, Message, Mode


class RetrieveOptions(TypedDict, total=False):
    """What is to be found and chosen for a question; each may be left out."""

    collection: str  # whose documents; "default"
    history: Sequence[Message]  # earlier turns of the conversation, oldest first
    k: int | None  # passages that are found, or in the prompt, at most; the setting `passages`
    modules: int | None  # documents' modules in the stack, at most; the setting `modules`
    plugins: Sequence[str] | None  # ids of the plug-ins in the stack, in place of those of the setting `plugins`
    filter: Filter | None  # which documents may answer, by passages or modules; all of the collection's
    extractor: bool | None  # whether to use the collection's extractor; the setting `extractor`
    rerank: int | None  # so many passages are ranked anew by the base model; the setting `rerank`
    rewrite: bool | None  # whether the base model restates a follow-up that cannot stand alone; the setting `rewrite`
    hops: int | None  # searches, each for what those before it found; the setting `hops`


class AskOptions(RetrieveOptions, total=False):
    """How a question is to be answered; each may be left out."""

    mode: Mode | str  # "hybrid", "retrieval", "modules" or "closed"; "hybrid"
    neighbours: int | None  # passages on each side that come with one; the setting `neighbours`
    max_tokens: int | None  # of the answer, at most; the setting `max_answer_tokens`
    temperature: float | None  # 0 (greedy) to 2; 0
    top_p: float | None  # above 0, to 1; 1
    stop: Sequence[str] | None  # texts that end the answer and are not in it; none
    seed: int | None  # of what is drawn where the temperature is above 0; the engine's own


def sampling_of(options: AskOptions, default: Sampling) -> Sampling:
    """How the engine is to decode an answer; what was not given is the default's."""
    stop = options.get("stop") or ()
    given = {name: options.get(name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(default, stop=(*default.stop, *stop), **known)


def check_options(names: Iterable[str], options: type = AskOptions) -> None:
    """Raises `TypeError` for a name that `options` has not: a misspelt `collection` must not mean the default's."""
    known = options.__annotations__.keys()
    if unknown := sorted(set(names) - known):
        raise TypeError(
            f"no option {', '.join(repr(name) for name in unknown)} of a question; expected some of {', '.join(known)}."
        )


def check_question(question: str) -> None:
    """Raises `QuestionError` for what is no text, empty, or no valid Unicode."""
    if not isinstance(question, str) or not question.strip():
        raise QuestionError(f"the question is empty ({question!r}); expected a text such as 'Who wrote it?'.")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise QuestionError(
            f"the question has {question[error.start]!r}, which is no valid Unicode; expected a text in UTF-8."
        ) from error


def check_values(question: str, options: AskOptions) -> None:
    """Raises `QuestionError` for values that no question can be answered with."""
    check_question(question)
    if (mode := options.get("mode")) is not None and mode not in list(Mode):
        raise QuestionError(f"mode={mode!r} cannot be used; expected one of {', '.join(Mode)}.")
    for name, least in (("k", 1), ("modules", 0), ("neighbours", 0), ("rerank", 0), ("hops", 1), ("max_tokens", 1)):
        value = options.get(name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise QuestionError(f"{name}={value!r} cannot be used; expected a whole number of {least} or more.")
    _check_sampling(options)
    if (rewrite := options.get("rewrite")) is not None and not isinstance(rewrite, bool):
        raise QuestionError(f"rewrite={rewrite!r} cannot be used; expected True or False.")
    plugins, filter = options.get("plugins"), options.get("filter")
    if plugins is not None and (isinstance(plugins, str) or not all(isinstance(name, str) for name in plugins)):
        raise QuestionError(f"plugins={plugins!r} cannot be used; expected a list of ids such as ['house-style'].")
    if filter is not None and not isinstance(filter, Filter):
        raise QuestionError(f"filter={filter!r} cannot be used; expected one such as Filter(since='2031-03-08').")


def _check_sampling(options: AskOptions) -> None:
    """Raises `QuestionError` for what no engine can decode by."""
    for name, least, most, said in (("temperature", 0.0, 2.0, "0 to 2"), ("top_p", 1e-6, 1.0, "above 0, to 1")):
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise QuestionError(f"{name}={value!r} cannot be used; expected a number of {said}.")
    seed, stop = options.get("seed"), options.get("stop")
    if seed is not None and (not isinstance(seed, int) or not -(2**63) <= seed < 2**63):
        raise QuestionError(f"seed={seed!r} cannot be used; expected a whole number of 64 bits.")
    if stop is not None and (isinstance(stop, str) or not all(isinstance(one, str) and one for one in stop)):
        raise QuestionError(f"stop={stop!r} cannot be used; expected a list of texts such as ['\\n'].")
