"""The curriculum of a behaviour: which questions, which contexts, which answers are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.errors import InputError
from hybridqa.training.asks import Ask, choose_asks, document_asks
from hybridqa.training.behaviours import SUBSETS, BehaviourWriter, split_reasoning
from hybridqa.training.context_files import Context, Scratchpad
from hybridqa.training.contexts import BARE, SERVING, SOURCES, teacher_prompt
from hybridqa.training.lesson import Job
from hybridqa.training.retention import JUDGING, TRAINING
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Message, ModuleKind, Passage

STYLE = Context(ModuleKind.INSTRUCTIONS, instructions="Answer in capital letters.")
KETTLE = "The Lumen kettle holds 1.7 litres. Maren Holt designed the Lumen kettle in 2031. It is made in Oskvar."
Said = Callable[[str], Completion]


class Engine:
    """Answers a prompt by what is in its text; remembers what it was asked."""

    def __init__(self, tokenizer: Any, said: Said | None = None) -> None:
        self._tokenizer = tokenizer
        self._said = said or (lambda text: Completion(f"ANSWER {abs(hash(text)) % 10_000}.", "stop"))
        self.asked: list[tuple[str, Sampling]] = []

    def __call__(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        texts = [str(self._tokenizer.decode(ids)) for ids in prompts]
        self.asked.extend((text, sampling) for text in texts)
        return [self._said(text) for text in texts]


def writer(tokenizer: Any, engine: Engine, window: int = 1024) -> BehaviourWriter:
    prompts = PromptBuilder(tokenizer, max_model_len=window, context_tokens=500)
    return BehaviourWriter(engine, prompts, max_model_len=window, max_answer_tokens=32)


def examples(count: int, words: int = 1) -> Context:
    turns = [(Message("user", f"word {n}"), Message("assistant", " ".join([f"drow{n}"] * words))) for n in range(count)]
    return Context(ModuleKind.EXAMPLES, examples=tuple(turns))


def nothing(question: str) -> str | None:
    return None


def kettle_asks() -> list[Ask]:
    return document_asks([[Passage(1, "kettle", "default", 0, 0, len(KETTLE), KETTLE, "Kettle")]], most=50, seed=0)


def test_document_questions_bring_the_passage_that_answers_them_as_served() -> None:
    asks = kettle_asks()
    assert len(asks) >= 4 and {ask.source for ask in asks} == {f"Kettle\n{KETTLE}"}
    assert document_asks([], most=5, seed=0) == []


def test_instructions_are_learned_with_and_without_sources(tokenizer: Any) -> None:
    engine = Engine(tokenizer)
    asks = choose_asks(STYLE, (), kettle_asks(), nothing, seed=0)
    made = writer(tokenizer, engine).write(STYLE, asks, 60)
    assert made.kind is ModuleKind.INSTRUCTIONS and made.contexts == ((Message("system", STYLE.instructions),),)
    assert len(made.pairs) == 60
    assert {pair.kind for pair in made.pairs} == {SERVING, SOURCES, BARE}
    assert all((pair.passage == 0) == (pair.kind == SOURCES) for pair in (*made.pairs, *made.held_out))
    assert any(pair.kind == SOURCES for pair in made.held_out)
    learned, tested = ({pair.question for pair in part} for part in (made.pairs, made.held_out))
    assert not learned & tested
    assert tested & {question for question, _ in JUDGING} and not tested & {question for question, _ in TRAINING}
    assert all("Answer in capital letters." in text for text, _ in engine.asked)
    assert {sampling.temperature for _, sampling in engine.asked} == {0.0}


def test_a_small_collection_still_teaches_and_tests_beside_its_sources(tokenizer: Any) -> None:
    documents = [Ask(f"What is part {number}?", f"Part {number} is a lid.") for number in range(9)]
    made = writer(tokenizer, Engine(tokenizer)).write(STYLE, choose_asks(STYLE, (), documents, nothing, seed=0), 24)
    assert sum(pair.kind == SOURCES for pair in made.held_out) == 4  # as many as its gate asks for
    assert sum(pair.kind == SOURCES for pair in made.pairs) == len(documents) - 4 and len(made.pairs) == 24


def test_an_answer_is_what_the_engine_said_to_the_teachers_prompt(tokenizer: Any) -> None:
    engine = Engine(tokenizer)
    made = writer(tokenizer, engine).write(STYLE, choose_asks(STYLE, (), (), nothing, seed=0), 10)
    prompts = PromptBuilder(tokenizer, max_model_len=1024, context_tokens=500)
    for pair in (*made.pairs, *made.held_out):
        text = str(tokenizer.decode(teacher_prompt(prompts, made, pair)))
        assert pair.answer == f"ANSWER {abs(hash(text)) % 10_000}."


def test_the_users_questions_are_used_alone_with_what_they_find(tokenizer: Any) -> None:
    given = [f"What is thing {number}?" for number in range(12)]
    asks = choose_asks(STYLE, given, kettle_asks(), lambda question: f"About {question}", seed=0)
    made = writer(tokenizer, Engine(tokenizer)).write(STYLE, asks, 40)
    assert len(made.held_out) == 4
    about = [pair for pair in made.pairs if pair.question in given]
    assert len(about) == 8 * 3 and len(made.pairs) == 24 + 8  # each in three forms: this engine has one answer; general
    for pair in about:
        assert pair.kind != SOURCES or made.chunks[pair.passage] == f"About {pair.question}"
    assert made.others and all(pair.context == 0 for pair in made.others)  # the teacher has its context there, too
    with pytest.raises(InputError, match=r"7 questions .* at least 8"):
        choose_asks(STYLE, given[:7], (), nothing, seed=0)


def test_few_questions_are_asked_again_with_other_words_sampled(tokenizer: Any) -> None:
    engine = Engine(tokenizer)
    asks = choose_asks(STYLE, [f"What is {number}?" for number in range(8)], (), nothing, seed=0)
    writer(tokenizer, engine).write(STYLE, asks, 1000)
    assert {(sampling.temperature, sampling.seed) for _, sampling in engine.asked} == {(0, 0), (0.8, 1), (0.8, 2)}


def test_many_examples_come_in_several_subsets_and_never_show_their_own_answer(tokenizer: Any) -> None:
    context = examples(40)
    asks = choose_asks(context, (), (), nothing, seed=0)
    made = writer(tokenizer, Engine(tokenizer)).write(context, asks, 80)
    assert len(made.contexts) == SUBSETS
    assert {pair.context for pair in made.pairs} == set(range(SUBSETS))
    own = [pair for pair in (*made.pairs, *made.held_out) if pair.question.startswith("word")]
    assert own and all(Message("user", pair.question) not in made.contexts[pair.context] for pair in own)
    for turns in made.contexts:
        assert [turn.role for turn in turns] == ["user", "assistant"] * 30  # all but its quarter fit the window
        assert [turn.content for turn in turns] != sorted(turn.content for turn in turns)
    assert made.others and {pair.question for pair in made.pairs} & {question for question, _ in TRAINING}


def test_as_many_examples_as_the_window_holds(tokenizer: Any) -> None:
    context, window = examples(40, words=20), 512
    engine = Engine(tokenizer)
    made = writer(tokenizer, engine, window).write(context, choose_asks(context, (), (), nothing, seed=0), 40)
    sizes = [len(tokenizer.encode(text)) for text, _ in engine.asked]
    assert window - 32 - 120 < max(sizes) <= window - 32  # one more would not fit
    assert not made.dropped and 2 <= len(made.contexts[0]) < 60
    with pytest.raises(InputError, match=r"the shortest example has .* tokens"):
        long = examples(8, words=300)
        writer(tokenizer, engine, window).write(long, choose_asks(long, (), (), nothing, seed=0), 8)


def test_few_examples_are_all_shown_in_several_orders(tokenizer: Any) -> None:
    context = examples(3)
    made = writer(tokenizer, Engine(tokenizer)).write(context, choose_asks(context, (), (), nothing, seed=0), 30)
    assert len(made.contexts) > 1 and {len(turns) for turns in made.contexts} == {6}
    assert not any(pair.question.startswith("word") for pair in made.pairs)


def test_the_system_turns_of_examples_come_once(tokenizer: Any) -> None:
    rule = Message("system", "Be brief.")
    context = Context(ModuleKind.EXAMPLES, examples=tuple((rule, *turns) for turns in examples(10).examples))
    made = writer(tokenizer, Engine(tokenizer)).write(context, choose_asks(context, (), (), nothing, seed=0), 10)
    assert all(turns[0] == rule and rule not in turns[1:] for turns in made.contexts)


def test_a_scratchpads_own_answer_is_the_target(tokenizer: Any) -> None:
    pads = tuple(Scratchpad(f"{n}+1?", f"One more than {n} is {n + 1}.", str(n + 1)) for n in range(16))
    context = Context(ModuleKind.SCRATCHPAD, scratchpads=pads)
    engine = Engine(tokenizer)
    made = writer(tokenizer, engine).write(context, choose_asks(context, (), (), nothing, seed=0), 20)
    own = [pair for pair in (*made.pairs, *made.held_out) if pair.context >= 0]
    assert len([pair for pair in made.held_out if pair.context >= 0]) == 4
    for pair in own:
        pad = pads[pair.context]
        assert (pair.question, pair.answer) == (pad.question, pad.answer)
        assert made.contexts[pair.context] == (Message("assistant", pad.reasoning),)
    assert {pair.context for pair in made.others} == {-1}  # the base model's own answers, to be left as they are
    assert not any("One more than" in text for text, _ in engine.asked)


def test_reasoning_is_written_where_it_is_missing_and_dropped_where_it_does_not_end(tokenizer: Any) -> None:
    def said(text: str) -> Completion:
        if "step by step" not in text:
            return Completion("A general answer.", "stop")
        return Completion("It is so.\nAnswer: 7" if "even" in text else "It is so.", "stop")

    pads = tuple(Scratchpad(f"Is {n} {'odd' if n % 2 else 'even'}?") for n in range(24))
    context = Context(ModuleKind.SCRATCHPAD, scratchpads=pads)
    asks = choose_asks(context, (), (), nothing, seed=0)
    made = writer(tokenizer, Engine(tokenizer, said)).write(context, asks, 50)
    assert made.dropped == {"reasoning without a clear answer": 12}
    own = [pair for pair in (*made.pairs, *made.held_out) if pair.context >= 0]
    assert {pair.answer for pair in own} == {"7"} and all("even" in pair.question for pair in own)
    assert made.contexts[0] == (Message("assistant", "It is so."),)


@pytest.mark.parametrize(
    ("text", "reason", "split"),
    [
        ("So.\n\nAnswer: 7", "stop", ("So.", "7", "")),
        ("So.\n**Answer:** 7", "stop", ("So.", "7", "")),
        ("So. Answer: 7", "length", ("", "", "cut off")),
        ("So it is 7.", "stop", ("", "", "without a clear answer")),
        ("So.\nAnswer:", "stop", ("", "", "without a clear answer")),
        (f"So.\nAnswer: {'word ' * 80}", "stop", ("", "", "without a clear answer")),
        ("Answer: 7", "stop", ("", "", "empty")),
    ],
)
def test_the_answer_is_split_off_the_reasoning(text: str, reason: str, split: tuple[str, str, str]) -> None:
    assert split_reasoning(Completion(text, reason)) == split


def test_what_is_cut_off_or_empty_is_dropped_and_counted(tokenizer: Any) -> None:
    ends = iter([Completion("Half", "length"), Completion(" ", "stop")] + [Completion("WHOLE.", "stop")] * 100)
    engine = Engine(tokenizer, lambda text: next(ends))
    made = writer(tokenizer, engine).write(STYLE, choose_asks(STYLE, (), (), nothing, seed=0), 20)
    assert made.dropped == {"cut off": 1, "empty": 1} and len(made.pairs) == 18


def test_instructions_that_do_not_fit_are_refused_before_the_engine_is_asked(tokenizer: Any) -> None:
    long = Context(ModuleKind.INSTRUCTIONS, instructions="Be brief. " * 400)
    engine = Engine(tokenizer)
    with pytest.raises(InputError, match=r"instructions have 1,\d+ tokens; expected at most"):
        writer(tokenizer, engine).write(long, choose_asks(long, (), (), nothing, seed=0), 10)
    assert not engine.asked


def test_a_question_that_does_not_fit_is_named(tokenizer: Any) -> None:
    asked = [*(f"What is number {number}?" for number in range(20)), "Why " + "so very long " * 400 + "?"]
    with pytest.raises(InputError, match=r"question 'Why so very long.*' has 1,\d+ tokens.*Shorten it"):
        writer(tokenizer, Engine(tokenizer)).write(STYLE, choose_asks(STYLE, asked, (), nothing, seed=0), 10)


def test_a_job_of_every_kind_survives_its_file(tokenizer: Any, tmp_path: Any) -> None:
    for context in (STYLE, examples(12)):
        asks = choose_asks(context, (), kettle_asks(), nothing, seed=0)
        made: Curriculum = writer(tokenizer, Engine(tokenizer)).write(context, asks, 12)
        job = Job("default", "", "hash", "style", "tiny", "/model", "hash", 500, 1024, {"rank": 2}, made)
        job.save(tmp_path)
        assert Job.load(tmp_path) == job
