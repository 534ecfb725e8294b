"""When a question is left unanswered for want of evidence, and what was looked for then.

Knows nothing about prompts or engines. Invariant: what was asked is not said: of the conversation only the user's
sentences that are no questions count as something to answer from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hybridqa.answering.plan import Plan
from hybridqa.ingest.sentences import split_sentences
from hybridqa.retrieval.lexical import AskedWords, question_words, stem
from hybridqa.types import Answer, Message, Mode, Passage, Route

SAID = 0.5  # of the question's words in what the user has stated: then it may be answered without any document


def certain(route: Route, question: str, history: Sequence[Message], below: float) -> Route:
    """The route, with nothing to answer from where no document has evidence of `below` and the user has not said it."""
    doc_id, strongest = next(iter(route.evidence.items()), ("", 0.0))
    if route.mode is Mode.CLOSED or strongest >= below:
        return route
    why = f"no document has evidence of {below:.2f}"
    why += f": the nearest, {doc_id!r}, has {strongest:.2f}" if doc_id else ""
    if share_said(question, history) >= SAID:
        return replace(route, reason=f"{route.reason}; {why}, but the user has spoken of it")
    return replace(route, passages=(), modules=(), reason=f"{route.reason}; nothing to answer from: {why}")


def confidence(route: Route, probability: float | None, abstained: bool) -> float | None:
    """How far to trust an answer, 0 to 1: its tokens' mean probability times the strongest evidence for a document.

    The product tells right answers from wrong ones better than either alone. Without documents to ask about, in closed
    mode, the probability is all there is.
    """
    if abstained or probability is None:
        return 0.0 if abstained else None
    return probability if route.mode is Mode.CLOSED else probability * max(route.evidence.values(), default=0.0)


def share_said(question: str, history: Sequence[Message]) -> float:
    """The share of the question's words that stand in what the user has stated, 0 to 1."""
    stated = [
        sentence
        for turn in history
        if turn.role == "user"
        for start, end in split_sentences(turn.content)
        if "?" not in (sentence := turn.content[start:end])[-3:]  # it may be quoted or in brackets
    ]
    return AskedWords(question).share_in("\n".join(stated)) if stated else 0.0


def not_found(question: str, passages: Sequence[Passage]) -> list[str]:
    """Those of the question's words that no passage has in title, heading or text."""
    asked = AskedWords(question)
    had = asked.among("\n".join(f"{one.title}\n{one.heading}\n{one.text}" for one in passages))
    return [word for word in question_words(question) if stem(word) in asked.stems - had]


def abstention(plan: Plan, total_s: float) -> Answer:
    """The answer when nothing was found to answer from."""
    sought = {
        Mode.HYBRID: "a passage or a module",
        Mode.RETRIEVAL: "a passage",
        Mode.MODULES: "a module",
        Mode.CLOSED: "anything",
    }[plan.mode]
    missing = f"{sought} in collection {plan.collection!r} about {plan.question.strip()!r}"
    if unfound := not_found(plan.question, [scored.passage for scored in plan.route.found]):
        missing += f"; nothing that was found has {', '.join(repr(word) for word in unfound)}"
    return Answer(
        text=f"I don't know: I found no {sought.replace('a ', '')} that this question is about.",
        mode=plan.mode,
        abstained=True,
        missing=missing,
        confidence=0.0,
        timings={**plan.timings, "total": total_s},
        route_reason=plan.route.reason,
        route=plan.route,
    )
