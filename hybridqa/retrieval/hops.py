"""What was found leads on to what the question does not name: the bridges between one search and the next.

Knows nothing about where passages are kept. Invariant: the passage that the first search put first stays first, and
what is searched for onward holds no question word that its bridge has answered already.

A question such as "Who directed the film that was shot in Leland?" names one document; the other is named in that one.
So the words of the best passages that the question does not have are looked up, with those of the question that they
do not have, and a candidate counts for as much as the bridges lead to it: how far they name its title, how well it fits
their words, and how much of the rest of the question it has. The weights were fitted on one half of a set of questions
that need several documents and confirmed on the other (eval/README.md). Searching by the meaning of question and
passage together found no more than by the question alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp

from hybridqa.retrieval.fusion import TitleMatch, best_first
from hybridqa.retrieval.lexical import STOPWORDS, AskedWords, question_words, stem, text_words
from hybridqa.types import Passage, ScoredPassage

BRIDGES = 2  # passages of each hop that are gone on from
ONWARD = 30  # candidates of each bridge, at most
NAMED = 4.3  # log-odds of a candidate that the bridge names by its whole title
FITTING = 1.4  # of the one that fits the bridge's words best
REST = 1.8  # of one with all of the question's words that the bridge does not have


@dataclass(slots=True)
class Bridge:
    """A passage that leads on, and what was found for its words."""

    passage: Passage
    weight: float  # how likely it is right, beside the best: 0 to 1
    words: frozenset[str]  # stems of its text
    text: str  # its words, a space before and behind each
    had: frozenset[str]  # of the question's stems
    query: str  # what is searched for: the rest of the question, and what is new
    lexical: dict[int, float] = field(default_factory=dict)  # BM25 of what was found for it

    @property
    def name(self) -> str:
        """How people know it."""
        return self.passage.title.strip() or self.passage.doc_id


class Trail:
    """The bridges of one question, from its second search on."""

    def __init__(self, question: str) -> None:
        self.hops: list[tuple[Bridge, ...]] = []  # those of each further search
        self._asked = AskedWords(question)
        self._question = question
        self._first: ScoredPassage | None = None

    def lead_on(self, found: Sequence[ScoredPassage]) -> tuple[Bridge, ...]:
        """The next bridges among what was found so far, best first; none when nothing leads on."""
        used = {bridge.passage.passage_id for hop in self.hops for bridge in hop}
        fresh = [scored for scored in found if scored.passage.passage_id not in used][:BRIDGES]
        if self._first is None and found:
            self._first = found[0]
        bridges = [self._bridge(scored, found[0].score) for scored in fresh]
        hop = tuple(bridge for bridge in bridges if bridge.query)
        if hop:
            self.hops.append(hop)
        return hop

    def _bridge(self, scored: ScoredPassage, best: float) -> Bridge:
        one = scored.passage
        body = f"{one.heading} {one.text}"
        had = self._asked.among(f"{one.title} {body}")
        new = [word for word in question_words(f"{one.title} {body}") if stem(word) not in self._asked.stems]
        rest = [word for word in question_words(self._question) if stem(word) not in had]
        return Bridge(
            one,
            exp(min(0.0, scored.score - best)),
            _stems(body),
            f" {' '.join(text_words(body))} ",
            had,
            " ".join([*rest, *new]) if new else "",
        )

    def notes(self) -> tuple[str, ...]:
        """What was searched for in each further hop, a line of it for people."""
        each = [list(dict.fromkeys(repr(bridge.name) for bridge in hop)) for hop in self.hops]
        return tuple(
            f"hop {number}: searched with what {' and '.join(names)} say" + ("s" if len(names) == 1 else "")
            for number, names in enumerate(each, 2)
        )

    def weigh(self, found: Sequence[ScoredPassage]) -> list[ScoredPassage]:
        """The candidates with what leads to each added to their scores, best first."""
        titles = [_stems(scored.passage.title) for scored in found]
        match = TitleMatch(titles)
        weighed = []
        for scored, title in zip(found, titles, strict=True):
            linked = self._link(scored.passage, title, match)
            weighed.append(replace(scored, score=scored.score + linked, linked=linked))
        ranked = best_first(weighed)
        assert self._first is not None
        first = self._first.passage.passage_id
        return best_first(
            replace(scored, score=max(scored.score, ranked[0].score + 1e-6))
            if scored.passage.passage_id == first
            else scored
            for scored in ranked
        )

    def _link(self, passage: Passage, title: frozenset[str], match: TitleMatch) -> float:
        """What the bridges of the hop that says most say for a passage, by how likely each of them is right."""
        has = self._asked.among(f"{passage.title} {passage.heading} {passage.text}")
        most = 0.0
        for hop in self.hops:
            bridges = [bridge for bridge in hop if bridge.passage.passage_id != passage.passage_id]
            if whole := sum(bridge.weight for bridge in bridges):  # a passage does not speak for itself
                steps = (bridge.weight * self._step(bridge, passage, title, match, has) for bridge in bridges)
                most = max(most, sum(steps) / whole)
        return most

    def _step(
        self, bridge: Bridge, passage: Passage, title: frozenset[str], match: TitleMatch, has: frozenset[str]
    ) -> float:
        named = 0.0
        if passage.doc_id != bridge.passage.doc_id and not title <= self._asked.stems:
            phrase = " ".join(text_words(passage.title.split("(")[0]))
            whole = bool(phrase) and f" {phrase} " in bridge.text
            named = (match.share(title, (title - self._asked.stems) & bridge.words) + whole) / 2
        best = max(bridge.lexical.values(), default=0.0)
        fitting = max(0.0, bridge.lexical.get(passage.passage_id, 0.0)) / best if best > 0 else 0.0
        rest = len(has - bridge.had) / len(self._asked.stems) if self._asked.stems else 0.0
        return NAMED * named + FITTING * fitting + REST * rest


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in text_words(text) if word not in STOPWORDS)
