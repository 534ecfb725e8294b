"""The synthesiser: what it keeps and where, what it drops and counts; sampled answers to what it asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.training.facts import find_facts
from hybridqa.training.generator import Prompt
from hybridqa.training.pairs import Pair
from hybridqa.training.sampled import TEMPERATURE, with_sampled
from hybridqa.training.synthesis import FEWEST, Curriculum, Plan, Synthesiser, filled
from hybridqa.training.tasks import QUESTION_TOKENS, RESTATEMENT_TOKENS, question_task, restatement_task, summary_task
from hybridqa.types import Message

TEXT = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The kettle went on sale on 14 March 2033 for 89 euros."
)
SECOND = "In 2040, the prize of the guild went to Maren Holt. Maren Holt gave it to the town of Tarn."


class Writer:
    """Writes the same question for every fact and the same text for everything else."""

    identity = "writer"

    def __init__(self, strong: bool = False) -> None:
        self.strong = strong
        self.asked: list[list[Prompt]] = []

    def write(self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0) -> list[Completion]:
        self.asked.append(list(prompts))
        if max_tokens == QUESTION_TOKENS:
            return [Completion(" How much water does the Lumen kettle hold?\n\nText:", "stop")] * len(prompts)
        order = "Of water, the Lumen kettle holds 1.7 litres" if max_tokens == RESTATEMENT_TOKENS else TEXT[:42]
        return [Completion(f" {order}. And th", "length")] * len(prompts)


def test_what_passes_is_kept_and_the_rest_counted() -> None:
    writer = Writer()
    first, second = Synthesiser(writer, plan=Plan(questions=5)).run([("Lumen kettle", [TEXT]), ("", ["Nothing here"])])
    assert len(writer.asked) == 2  # questions of all documents together, then summaries
    kept = first.report()["kept"]
    assert kept["question"] == 1  # the same for each fact: kept once, then repeated or wrong
    assert kept["summary"] == 1 and sum(kept.values()) == FEWEST  # the document is short
    assert sum(first.dropped.values()) == 4
    assert all(key.startswith("question: ") for key in first.dropped)
    assert not second.held_out and second.report()["dropped"] == {"summary: says what its source does not": 1}


def test_facts_are_answered_by_phrases_and_sentences_in_turn() -> None:
    (lesson,) = Synthesiser(Writer()).run([("Lumen kettle", [TEXT, SECOND])])
    facts = find_facts([TEXT, SECOND])
    for pairs in (lesson.pairs, lesson.reserve):
        asked = [pair for pair in pairs if pair.fact >= 0]
        told = [pair for pair in asked if pair.answer == facts[pair.fact].statement]
        short = [pair for pair in asked if pair.answer == facts[pair.fact].phrase]
        assert len(told) == len(asked) // 2 and len(told) + len(short) == len(asked)
    assert {pair.answer for pair in lesson.held_out} <= {fact.phrase for fact in facts}


def test_a_short_document_is_asked_about_in_more_words_and_all_of_it_alike() -> None:
    (lesson,) = Synthesiser(Writer()).run([("Lumen kettle", [TEXT])])
    assert len(lesson.pairs) == FEWEST
    ways = Counter(pair.fact for pair in lesson.pairs if pair.kind == "ask")
    facts = find_facts([TEXT])
    assert set(ways) == {fact.number for fact in facts} and max(ways.values()) - min(ways.values()) <= 2
    assert len({pair.question for pair in lesson.pairs}) == FEWEST


def test_a_first_round_takes_from_the_reserve_what_it_lacks_turn_by_turn() -> None:
    reserve = [Pair(f"{fact} {way}?", "x", "ask", 0, fact) for fact in range(4) for way in range(30)]
    enough = [Pair(f"{number}?", "x", "question", 0, -1) for number in range(FEWEST - 6)]
    pairs, rest = filled(enough, reserve)
    assert [pair.question for pair in pairs[-6:]] == ["0 0?", "0 1?", "1 0?", "1 1?", "2 0?", "3 0?"]
    assert sorted(pairs[-6:] + rest, key=reserve.index) == reserve and rest[0].question == "0 2?"
    assert filled([*pairs, *rest], reserve) == ([*pairs, *rest], reserve)
    assert filled([], reserve[:5]) == (reserve[:5], [])


def test_learning_the_reserve_and_testing_are_apart() -> None:
    (lesson,) = Synthesiser(Writer()).run([("Lumen kettle", [TEXT, SECOND])])
    questions = [{pair.question for pair in pairs} for pairs in (lesson.pairs, lesson.reserve, lesson.held_out)]
    assert all(questions) and sum(map(len, questions)) == len(set().union(*questions))
    assert {pair.passage for pair in lesson.reserve} == {0, 1}
    assert Counter(pair.passage for pair in lesson.held_out)[1] >= 2
    assert [pair.also for pair in lesson.pairs if pair.kind == "cross"] == [(1,)]
    assert Synthesiser(Writer()).run([("Lumen kettle", [TEXT, SECOND])]) == [lesson]


def test_two_chunks_that_fit_no_prompt_are_not_asked_about_together() -> None:
    (lesson,) = Synthesiser(Writer(), fits=lambda sources: False).run([("Lumen kettle", [TEXT, SECOND])])
    assert not any(pair.also for pair in (*lesson.pairs, *lesson.reserve))


def test_a_strong_writer_is_asked_for_more() -> None:
    writer = Writer(strong=True)
    (lesson,) = Synthesiser(writer).run([("Lumen kettle", [TEXT, SECOND])])
    assert [len(prompts) for prompts in writer.asked] == [min(6, len(find_facts([TEXT]))) + 4, 2, 2]
    assert lesson.report()["kept"]["restatement"] == 1  # of the first chunk; the second says no such thing
    assert lesson.dropped["restatement: says what its source does not"] == 1


def test_a_curriculum_survives_json() -> None:
    (lesson,) = Synthesiser(Writer()).run([("Lumen kettle", [TEXT, SECOND])])
    assert Curriculum.from_dict(json.loads(json.dumps(asdict(lesson)))) == lesson


def test_a_document_is_asked_the_same_whatever_documents_come_with_it() -> None:
    text = " ".join(f"The mill of Tarn {place} was built in {1500 + place} by Otto Falk." for place in range(40))
    first, second = Writer(), Writer()
    (alone,) = Synthesiser(first).run([("Mills", (text,))])
    beside = Synthesiser(second).run([("Kettle", (TEXT,)), ("Mills", (text,))])[1]
    assert alone == beside
    mills = [[prompt for prompt in asked[0] if "mill of Tarn" in prompt.text] for asked in (first.asked, second.asked)]
    assert mills[0] == mills[1] and len(mills[0]) == 8


def test_both_forms_of_a_request_show_the_same_and_end_where_a_model_goes_on() -> None:
    fact = find_facts([TEXT])[0]
    for prompt in (question_task("Kettle", TEXT, fact), summary_task("Kettle", TEXT), restatement_task("Kettle", TEXT)):
        system, user = prompt.messages
        assert (system.role, user.role) == ("system", "user")
        assert fact.sentence in prompt.text and fact.sentence in user.content
    assert summary_task("Kettle", TEXT).text.endswith(summary_task("Kettle", TEXT).stop)  # or it stops before it begins
    assert not question_task("Kettle", TEXT, fact).text.endswith("\n")


def test_answers_are_sampled_with_the_chunks_as_sources() -> None:
    (lesson,) = Synthesiser(Writer()).run([("Lumen kettle", [TEXT, SECOND])])
    asked: list[Sequence[Message]] = []

    def answer(conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Completion]:
        asked.extend(conversations)
        assert sampling.temperature == TEMPERATURE and sampling.seed == 3
        texts = ["It is 1.7 litres [1].", "I don't know.", "It is 17 litres."]
        return [Completion(texts[place % 3], "stop") for place in range(len(conversations))]

    (with_answers,) = with_sampled([lesson], answer, seed=3)
    put = [pair for pair in lesson.pairs if pair.kind != "summary"]
    assert len(asked) == len(put)
    for pair, conversation in zip(put, asked, strict=True):
        assert f"[1] Lumen kettle\n{lesson.chunks[pair.passage]}" in conversation[-1].content
        assert (SECOND in conversation[-1].content) == (1 in (pair.passage, *pair.also))
        assert conversation[-1].content.endswith(pair.question)
    known = {pair.question for pair in lesson.pairs}
    assert with_answers.sampled and all(pair.kind == "sampled" for pair in with_answers.sampled)
    assert {pair.answer for pair in with_answers.sampled} == {"It is 1.7 litres."}
    assert {pair.question for pair in with_answers.sampled} <= known
    assert with_answers.dropped["sampled: no answer"] == len(put[1::3])
    assert with_answers.dropped["sampled: says what its source does not"] >= len(put[2::3])
    assert with_answers.pairs == lesson.pairs


@pytest.mark.parametrize("curricula", [[], [Curriculum("", (), (), (), {})]])
def test_nothing_is_sampled_where_nothing_is_asked(curricula: list[Curriculum]) -> None:
    def answer(conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Completion]:
        raise AssertionError("no engine is needed")

    assert with_sampled(curricula, answer) == curricula
