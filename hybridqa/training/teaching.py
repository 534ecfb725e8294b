"""What one job's student is taught: its examples, the teacher's targets for them, and what the second round adds.

Knows nothing about losses, steps or files but the choice of the second round. Invariant: a job that is taken up again
is taught what it was taught before it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.files import atomic_write_text
from hybridqa.training.closeness import row_tokens
from hybridqa.training.judging import PACK_TOKENS
from hybridqa.training.lesson import Job
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.retention import TRAINING, mixed, retention_examples
from hybridqa.training.second_round import choose_second_round, loss_by_chunk
from hybridqa.training.targets import KeptTargets
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import closed_example, first_lessons, lesson_pairs, lessons, teacher_example
from hybridqa.types import ModuleKind

CHOICE = "second_round.json"  # in a job's folder: places in the reserve
SECOND_SHARE = 0.5  # the second round's pairs, of the first's
PROBES_PER_CHUNK = 4  # of the reserve, asked to find what the student still knows least
Lists = list[list[Example]]


class Teaching:
    """One job's examples and targets; the adapter is attached."""

    def __init__(
        self, folder: Path, job: Job, trainer: Trainer, prompts: PromptBuilder, recipe: Recipe, kept: KeptTargets
    ) -> None:
        self.lesson = job.curriculum
        self.pairs = lesson_pairs(self.lesson, recipe.objective)
        self.targets = kept
        self.second: list[Pair] = []
        self._folder = folder
        self._job = job
        self._trainer = trainer
        self._prompts = prompts
        self._recipe = recipe
        self._need_teacher = recipe.weights().need_teacher

    @property
    def behaviour(self) -> bool:
        """Whether what is learned is no document."""
        return self.lesson.kind is not ModuleKind.DOCUMENT

    def students(self) -> Lists:
        """The first round's examples, in lists that begin alike."""
        length = self._job.max_model_len
        return first_lessons(self._prompts, self.lesson, self.pairs, self._recipe, max_model_len=length)

    def teach(self) -> None:
        """Has the teacher read what the first round needs."""
        if self._need_teacher:
            self._teach(self.pairs, 0)

    def retained(self) -> Lists:
        """Examples to be answered as the base model alone answers them, with what it says."""
        if not self._recipe.retention or self.behaviour:  # a behaviour's general questions are in its curriculum
            return []
        questions = mixed(TRAINING, self._job.off_topic)
        first = len(self.pairs) + len(self.lesson.reserve)
        lists = retention_examples(self._prompts, questions, first=first)
        examples = [item for part in lists for item in part]
        self._trainer.teach(examples, self._recipe, hidden=False, tokens=PACK_TOKENS, keep=self.targets)
        return lists

    def more(self) -> Callable[[], Lists] | None:
        """What gives the second round's examples; None where there is none.

        Sampled answers have no reserve.
        """
        one = self.behaviour or self.pairs is not self.lesson.pairs or not self.lesson.reserve
        return None if one or self._recipe.first_round >= 1 else self._second_round

    def second_report(self) -> dict[str, int]:
        """For the module's metrics: how many pairs the second round added."""
        return {"second_round": len(self.second)} if self.second else {}

    def _second_round(self) -> Lists:
        self.second = self._chosen()
        first = len(self.pairs)
        if self._need_teacher:
            self._teach(self.second, first)
        recipe = self._recipe
        lists = lessons(self._prompts, self.lesson, self.second, reading=recipe.reading, seed=recipe.seed + 1)
        return [[replace(example, key=first + example.key) for example in part] for part in lists]

    def _chosen(self) -> list[Pair]:
        """The second round's pairs, chosen once."""
        reserve = self.lesson.reserve
        path = self._folder / CHOICE
        try:
            return [reserve[place] for place in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, IndexError):
            pass
        probes = _probes(reserve)
        examples = [closed_example(self._prompts, pair, key, 0) for key, pair in enumerate(probes)]
        scores = self._trainer.score(examples, tokens=PACK_TOKENS)
        losses = loss_by_chunk(probes, [-score for score in scores])
        count = max(1, round(SECOND_SHARE * len(self.pairs)))
        chosen = choose_second_round(self.lesson, losses, count, self._recipe.seed)
        places = {id(pair): place for place, pair in enumerate(reserve)}
        atomic_write_text(path, json.dumps([places[id(pair)] for pair in chosen]))
        return chosen

    def _teach(self, pairs: Sequence[Pair], first: int) -> None:
        """Keeps the teacher's targets for pairs, whose keys begin at `first`."""
        # A context and a chunk are read once a row.
        order = sorted(range(len(pairs)), key=lambda at: (pairs[at].context, pairs[at].passage, pairs[at].also))
        # Made when their row comes up: with their chunks, the prompts of a long document would fill the memory.
        examples = (teacher_example(self._prompts, pairs[at], first + at, self.lesson) for at in order)
        hidden = self._recipe.weights().hidden > 0
        self._trainer.teach(examples, self._recipe, hidden=hidden, tokens=row_tokens, keep=self.targets)


def _probes(reserve: Sequence[Pair]) -> list[Pair]:
    """A few pairs of each chunk."""
    taken: dict[int, int] = {}
    probes = []
    for pair in reserve:
        if taken.get(pair.passage, 0) < PROBES_PER_CHUNK:
            taken[pair.passage] = taken.get(pair.passage, 0) + 1
            probes.append(pair)
    return probes
