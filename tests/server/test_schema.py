"""What requests are made into: the same names as `AskOptions` has, and nothing that is passed over."""

from __future__ import annotations

from hybridqa.answering.options import AskOptions
from hybridqa.server.modes import MODELS
from hybridqa.server.schema import ChatRequest, Extension
from hybridqa.types import Filter, Mode

TURN = {"role": "user", "content": "Who?"}


def test_the_extension_has_the_names_of_the_options() -> None:
    assert set(Extension.model_fields) <= set(AskOptions.__annotations__)
    request = ChatRequest.model_validate({"model": "hybridqa", "messages": [TURN]})
    assert set(request.options()) <= set(AskOptions.__annotations__)
    own = {"mode", "history", "max_tokens", "temperature", "top_p", "stop", "seed"}  # the API's parameters say these
    assert set(AskOptions.__annotations__) - own == set(Extension.model_fields)


def test_everything_that_was_asked_for_arrives() -> None:
    request = ChatRequest.model_validate(
        {
            "model": "hybridqa-modules",
            "messages": [TURN],
            "max_tokens": 5,
            "max_completion_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": "x",
            "seed": 3,
            "user": "passed over",
            "hybridqa": {"k": 2, "hops": 2, "filter": {"doc_ids": ["a"], "since": "2031-01-01"}, "plugins": ["style"]},
        }
    )
    options = request.options()
    assert options["mode"] is Mode.MODULES and (options["max_tokens"], options["stop"]) == (7, ["x"])
    assert (options["temperature"], options["top_p"], options["seed"]) == (0.5, 0.9, 3)
    assert (options["k"], options["hops"], options["plugins"]) == (2, 2, ["style"])
    assert options["filter"] == Filter(doc_ids=("a",), since="2031-01-01")


def test_each_mode_has_one_name_and_the_plain_one_is_the_default() -> None:
    assert sorted(MODELS.values()) == sorted(Mode)
    assert MODELS["hybridqa"] is Mode.HYBRID
