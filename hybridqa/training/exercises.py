"""What an extractor is asked and what it should say: questions as they would be served, in every configuration.

Knows nothing about losses or adapters. Invariants: the sources of an exercise are numbered as the prompt numbers them,
and a citation in its target points to a source that holds the answer; where no source holds it and no right module is
plugged in, the target is the very sentence that the instruction asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from hybridqa.answering.prompt import UNKNOWN, PromptBuilder, source_text
from hybridqa.answering.support import Evidence
from hybridqa.errors import QuestionError
from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.evaluation.metrics import contains, normalise
from hybridqa.training.mixture import CONFIGURATIONS, Mixture, Plugged, Sources
from hybridqa.types import Passage, ScoredPassage

UNANSWERABLE = "unanswerable"  # the configuration of a question without an answer: as it would be served


@dataclass(frozen=True, slots=True)
class Exercise:
    """One prompt and its answer, as text."""

    qid: str
    doc_id: str  # the gold document, which the intervals are drawn over
    configuration: str  # one of CONFIGURATIONS, or UNANSWERABLE
    question: str
    sources: tuple[str, ...]  # as `source_text` makes them, numbered from 1; empty: a closed prompt
    target: str
    module: str | None  # the document whose module is plugged in


class ExerciseWriter:
    """Writes exercises over one store's documents."""

    def __init__(
        self,
        find: Callable[[str], Sequence[ScoredPassage]],
        passages_of: Callable[[str], Sequence[Passage]],
        prompts: PromptBuilder,
        *,
        modules: Collection[str],
        passages: int,
        max_answer_tokens: int,
        seed: int,
    ) -> None:
        """`find` gives what is found for a question, best first and more than is shown; `passages_of` a document's.

        `modules` are the documents that have a module; a prompt holds at most `passages`.
        """
        self._find = find
        self._passages_of = passages_of
        self._prompts = prompts
        self._modules = sorted(modules)
        self._passages = passages
        self._max_answer_tokens = max_answer_tokens
        self._seed = seed
        self._located: dict[str, bool] = {}

    def draw(self, question: EvalQuestion, mixture: Mixture, turn: int = 0) -> Exercise | str:
        """The question in the configuration that the mixture draws for it in a turn, or why it cannot be asked."""
        configuration = mixture.draw(f"{question.qid}\0{turn}", self._seed, **self._has(question))
        return self.write(question, configuration, turn)

    def every(self, question: EvalQuestion) -> list[Exercise]:
        """The question in every configuration that it can be asked in."""
        has = self._has(question)
        names = [
            name
            for name, (_, plugged) in CONFIGURATIONS.items()
            if plugged is Plugged.NONE or has["module" if plugged is Plugged.RIGHT else "other"]
        ]
        written = [self.write(question, name) for name in ([UNANSWERABLE] if question.unanswerable else names)]
        return [exercise for exercise in written if isinstance(exercise, Exercise)]

    def write(self, question: EvalQuestion, configuration: str, turn: int = 0) -> Exercise | str:
        """The question in one configuration, or why it cannot be asked so; each turn draws a wrong module anew."""
        if question.unanswerable:
            return self._unanswerable(question)
        if min(map(len, map(self._prompts.encode_answer, question.answers))) > self._max_answer_tokens:
            return "its answer is longer than `max_answer_tokens`"
        sources, plugged = CONFIGURATIONS[configuration]
        right = plugged is Plugged.RIGHT
        if not right and not self._is_located(question):
            return "no passage of its document holds its answer in the same words"
        shown: tuple[ScoredPassage, ...] = ()
        if sources is not Sources.NONE:
            found = self._find(question.question)
            if sources is Sources.WITHOUT_GOLD:
                found = [scored for scored in found if not self._holds(scored.passage, question)]
            try:
                shown = self._shown(question, found)
            except QuestionError:
                return "it does not fit the model's window with a passage"
            if not shown:
                return "no passage was found for it"
        gold = self._gold(question, shown)
        if gold is None and not right and any(contains(item.passage.text, question.answers) for item in shown):
            return "its answer stands in another document's passage"
        if gold is None and not right:
            target = UNKNOWN
        else:
            answer = self._answer(question, None if gold is None else shown[gold].passage)
            target = answer if gold is None else f"{answer} [{gold + 1}]"
        return self._exercise(question, configuration, shown, target, plugged, turn)

    def _unanswerable(self, question: EvalQuestion) -> Exercise | str:
        try:
            shown = self._shown(question, self._find(question.question))
        except QuestionError:
            return "it does not fit the model's window with a passage"
        if not shown:
            return "no passage was found for it"
        plugged = Plugged.RIGHT if self._has(question)["module"] else Plugged.NONE
        return self._exercise(question, UNANSWERABLE, shown, UNKNOWN, plugged)

    def _exercise(
        self,
        question: EvalQuestion,
        configuration: str,
        shown: Sequence[ScoredPassage],
        target: str,
        plugged: Plugged,
        turn: int = 0,
    ) -> Exercise:
        module = None
        if plugged is not Plugged.NONE:
            right = [name for name in self._modules if name in question.doc_ids]
            wrong = [name for name in self._modules if name not in question.doc_ids]
            draw = random.Random(f"{self._seed}\0{question.qid}\0{configuration}\0{turn}")
            module = right[0] if plugged is Plugged.RIGHT else draw.choice(wrong)
        doc_id = question.doc_ids[0] if question.doc_ids else ""
        sources = tuple(source_text(scored.passage) for scored in shown)
        return Exercise(question.qid, doc_id, configuration, question.question.strip(), sources, target, module)

    def _has(self, question: EvalQuestion) -> dict[str, bool]:
        """Whether the question's own document, and any other one, has a module."""
        right = sum(name in question.doc_ids for name in self._modules)
        return {"module": right > 0, "other": len(self._modules) > right}

    def _shown(self, question: EvalQuestion, found: Sequence[ScoredPassage]) -> tuple[ScoredPassage, ...]:
        """The passages that the prompt holds, in its order."""
        built = self._prompts.build(
            question.question, (), found[: self._passages], max_answer_tokens=self._max_answer_tokens
        )
        return built.passages

    def _gold(self, question: EvalQuestion, shown: Sequence[ScoredPassage]) -> int | None:
        """The place of the source that holds the answer and shares most words with the question."""
        asked = set(normalise(question.question).split())
        holding = [
            place
            for place, scored in enumerate(shown)
            if scored.passage.doc_id in question.doc_ids and self._holds(scored.passage, question)
        ]
        shared = partial(_shared_words, asked=asked)
        return max(holding, key=lambda place: shared(shown[place].passage), default=None)

    def _holds(self, passage: Passage, question: EvalQuestion) -> bool:
        """Whether a passage holds an answer: word for word, or, of the gold document, in nearly the same words."""
        if contains(passage.text, question.answers):
            return True
        if passage.doc_id not in question.doc_ids:
            return False
        evidence = Evidence([ScoredPassage(passage, 0.0)])
        return any(evidence.best(answer, question.question) is not None for answer in question.answers)

    def _is_located(self, question: EvalQuestion) -> bool:
        """Whether any passage of the gold documents holds an answer."""
        if question.qid not in self._located:
            passages = [passage for doc_id in question.doc_ids for passage in self._passages_of(doc_id)]
            self._located[question.qid] = any(contains(passage.text, question.answers) for passage in passages) or any(
                self._holds(passage, question) for passage in passages
            )  # slower
        return self._located[question.qid]

    def _answer(self, question: EvalQuestion, passage: Passage | None) -> str:
        """The first gold answer that the passage holds word for word, else the first that is short enough."""
        short = [
            answer.strip()
            for answer in question.answers
            if len(self._prompts.encode_answer(answer)) <= self._max_answer_tokens
        ]
        held = [answer for answer in short if passage is not None and contains(passage.text, [answer])]
        return (held or short)[0]


def _shared_words(passage: Passage, *, asked: set[str]) -> int:
    return len(asked & set(normalise(f"{passage.title} {passage.heading} {passage.text}").split()))
