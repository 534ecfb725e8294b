"""The engine as a writer of synthetic data: prompts by their stops, room for each, one completion for each in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.training.generator import NO_ROOM, EngineGenerator, Prompt
from hybridqa.types import Message


class Recorder:
    """Completes each prompt with its own length, and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sampling] = []

    def __call__(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        self.asked.append(sampling)
        return [Completion(str(len(ids)), "stop") for ids in prompts]


def test_prompts_are_answered_in_order_and_those_without_room_not_at_all(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer, max_model_len=64, context_tokens=40)
    recorder = Recorder()
    generator = EngineGenerator(recorder, prompts, max_model_len=64, identity="tiny")
    texts = ["one two three", "word " * 100, "one", "one two"]
    stops = ["\n", "\n", "\n\n", "\n"]
    asked = [Prompt(text, stop=stop) for text, stop in zip(texts, stops, strict=True)]
    written = generator.write(asked, max_tokens=8)
    lengths = [str(len(prompts.encode_plain(text))) for text in texts]
    assert [done.text for done in written] == [lengths[0], "", lengths[2], lengths[3]]
    assert written[1] is NO_ROOM
    assert {sampling.stop for sampling in recorder.asked} == {("\n",), ("\n\n",)}
    assert all(sampling.max_tokens == 8 and sampling.temperature == 0 for sampling in recorder.asked)


def test_an_answer_is_asked_for_in_the_chat_template(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer, max_model_len=64, context_tokens=40)
    generator = EngineGenerator(Recorder(), prompts, max_model_len=64, identity="tiny")
    messages = [Message("user", "Who?")]
    (done,) = generator.answer([messages], Sampling(max_tokens=4, temperature=0.7))
    assert done.text == str(len(prompts.encode(messages)))
    assert generator.write([], max_tokens=8) == []
