"""`ask` and `chat`: questions and answers.

Knows nothing about how an answer is found. Invariant: `--json` prints one object an answer, on one line where standard
output is no terminal; with `--stream`, lines `{"delta": …}` come before it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridqa.cli import output
from hybridqa.cli.context import PARTIAL, AsJson, Collection, command, fail, open_store
from hybridqa.cli.explanation import explanation, show_explanation
from hybridqa.cli.filters import Documents, Since, Until, Where, filter_of
from hybridqa.errors import HybridQAError, QuestionError
from hybridqa.types import DEFAULT_COLLECTION, Answer, Filter, Message, Mode, ModuleChoice

if TYPE_CHECKING:
    from hybridqa.answering.options import AskOptions
    from hybridqa.pipeline import HybridQA

HELP = "/mode [hybrid|retrieval|modules|closed] · /clear forgets the conversation · /quit"
AskMode = Annotated[Mode, typer.Option("--mode", "-m", help="Where the answer may come from.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A plug-in's id, as `hybridqa modules` shows it; may be repeated."),
]
NoExtractor = Annotated[bool, typer.Option("--no-extractor", help="Leave the collection's extractor out.")]
Passages = Annotated[int | None, typer.Option("--k", "-k", min=1, help="Passages in the prompt, at most.")]
Beside = Annotated[
    int | None,
    typer.Option("--neighbours", min=0, help="Passages on each side that come with one, where there is room."),
]
Rerank = Annotated[
    int | None, typer.Option("--rerank", min=0, help="Rank so many passages anew by the base model; 0: none.")
]

Rewrite = Annotated[
    bool | None,
    typer.Option("--rewrite/--no-rewrite", help="Have the base model restate follow-ups that cannot stand alone."),
]
Hops = Annotated[
    int | None, typer.Option("--hops", min=1, help="Search so many times, each further one for what was found.")
]


@command
def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question; '-' reads it from standard input.")] = "-",
    mode: AskMode = Mode.HYBRID,
    k: Passages = None,
    collection: Collection = DEFAULT_COLLECTION,
    plugin: Plugins = None,
    no_extractor: NoExtractor = False,
    document: Documents = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    neighbours: Beside = None,
    rerank: Rerank = None,
    hops: Hops = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what was found, what speaks for it, and what was decided.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer one question from the documents, with citations."""
    if question == "-":
        question = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not question.strip():
        raise QuestionError("the question is empty; expected a text such as 'Who wrote it?', or '-' to read it.")
    asked = _options(
        collection, k, plugin, no_extractor, filter_of(document, where, since, until), neighbours, rerank, hops
    )
    with open_store(context) as store:
        answer = _answer(store, question, {**asked, "mode": mode}, stream, as_json)
        if as_json:
            explained = {"explanation": explanation(answer)} if explain else {}
            output.say_json({**answer_json(answer, question, collection), **explained})
            return
        _show(answer, question, collection, as_json, streamed=stream)
        if explain:
            show_explanation(answer)


@command
def chat(
    context: typer.Context,
    mode: AskMode = Mode.HYBRID,
    k: Passages = None,
    collection: Collection = DEFAULT_COLLECTION,
    plugin: Plugins = None,
    no_extractor: NoExtractor = False,
    document: Documents = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    neighbours: Beside = None,
    rerank: Rerank = None,
    hops: Hops = None,
    rewrite: Rewrite = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question after another; earlier turns are remembered. Reads lines from standard input."""
    by_hand = sys.stdin.isatty()
    history: list[Message] = []
    troubled = False
    asked = _options(
        collection, k, plugin, no_extractor, filter_of(document, where, since, until), neighbours, rerank, hops, rewrite
    )
    with open_store(context) as store:
        store.catalog.require_collection(collection)
        if by_hand:
            output.note(HELP, style="dim")
        for line in _lines(by_hand):
            if line.startswith("/"):
                word, _, argument = line.partition(" ")
                if word in ("/quit", "/exit"):
                    break
                if word == "/clear":
                    history.clear()
                elif word == "/mode":
                    mode, known = _mode(argument.strip(), mode)
                    troubled = troubled or not known
                else:
                    output.note(HELP)
                continue
            try:
                answer = _answer(store, line, {**asked, "mode": mode, "history": tuple(history)}, by_hand, as_json)
            except HybridQAError as error:  # of this question alone
                fail(error)
                troubled = True
                continue
            except KeyboardInterrupt:
                if not by_hand:
                    raise
                output.note("\nstopped; /quit leaves", style="dim")
                continue
            _show(answer, line, collection, as_json, streamed=by_hand)
            history += [Message("user", line), Message("assistant", answer.text)]
    if troubled and not by_hand:
        raise typer.Exit(PARTIAL)


def _lines(by_hand: bool) -> Iterator[str]:
    """The lines of standard input that are not empty; with a prompt when somebody types them."""
    if not by_hand:
        for raw in sys.stdin.buffer:
            if text := raw.decode("utf-8", "replace").strip():
                yield text
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() its line editing)
    while True:
        output.err().print("[bold]you ›[/] ", end="")
        try:
            text = input()
        except EOFError:
            return
        if text.strip():
            yield text.strip()


def _mode(name: str, current: Mode) -> tuple[Mode, bool]:
    """The mode of this name, and whether there is one; says which is in force."""
    known = not name or name in list(Mode)
    mode = Mode(name) if name and known else current
    if not known:
        output.note(f"error: no mode {name!r}; expected one of {', '.join(Mode)}.", style="red")
    output.note(f"mode: {mode}", style="dim")
    return mode, known


def _options(
    collection: str,
    k: int | None,
    plugin: list[str] | None,
    no_extractor: bool,
    filter: Filter | None,
    neighbours: int | None,
    rerank: int | None,
    hops: int | None,
    rewrite: bool | None = None,
) -> AskOptions:
    """The options that hold for all questions of a command; what was not given is left to the settings."""
    extractor = False if no_extractor else None
    return {
        "collection": collection,
        "k": k,
        "plugins": plugin or None,
        "extractor": extractor,
        "filter": filter,
        "neighbours": neighbours,
        "rerank": rerank,
        "hops": hops,
        "rewrite": rewrite,
    }


def _answer(store: HybridQA, question: str, asked: AskOptions, stream: bool, as_json: bool) -> Answer:
    with output.err().status("finding an answer…", spinner="dots") as status:
        if not stream:
            return store.ask(question, **asked)
        for piece in store.stream(question, **asked):
            if isinstance(piece, Answer):
                return piece
            status.stop()
            if as_json:
                output.say_json({"delta": piece.text})
            else:
                output.write(piece.text)
    raise AssertionError("a stream ends with its answer")


def _show(answer: Answer, question: str, collection: str, as_json: bool, *, streamed: bool) -> None:
    if as_json:
        output.say_json(answer_json(answer, question, collection))
        return
    output.say("" if streamed else answer.text)
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        output.say(f"  [{citation.number}] {citation.doc_id} ({citation.start}–{citation.end}): “{quote}”", style="dim")
    modules = ", ".join(f"{choice.module.name} × {_weight(choice)}" for choice in answer.modules) or "none"
    modules += "".join(f" · plug-in {choice.module.name}" for choice in answer.plugins)
    modules += f" · extractor {answer.extractor.module.name}" if answer.extractor is not None else ""
    seconds = answer.timings.get("total", 0.0)
    output.note(
        f"mode {answer.mode} · passages {len(answer.passages)} · modules {modules} · "
        f"{answer.usage.prompt_tokens}+{answer.usage.completion_tokens} tokens · {seconds:.1f} s",
        style="dim",
    )


def answer_json(answer: Answer, question: str, collection: str) -> dict[str, Any]:
    """An answer as `--json` prints it."""
    return {
        "question": question.strip(),
        "collection": collection,
        "answer": answer.text,
        "abstained": answer.abstained,
        "missing": answer.missing,
        "mode": answer.mode,
        "confidence": answer.confidence,
        "probability": answer.probability,
        "citations": [output.plain(citation) for citation in answer.citations],
        "passages": [
            {"number": number, **output.plain(scored.passage), "score": scored.score, "cosine": scored.dense}
            for number, scored in enumerate(answer.passages, 1)
        ],
        "modules": [{**_choice_json(choice), "evidence": choice.evidence} for choice in answer.modules],
        "plugins": [_choice_json(choice) for choice in answer.plugins],
        "extractor": None if answer.extractor is None else _choice_json(answer.extractor),
        "reason": answer.route_reason,
        "timings": dict(answer.timings),
        "usage": {**output.plain(answer.usage), "total_tokens": answer.usage.total_tokens},
    }


def _choice_json(choice: ModuleChoice) -> dict[str, Any]:
    """What was plugged in; weights that differ by layer as an object of their extremes."""
    weight: Any = choice.weight
    if isinstance(weight, Mapping):
        weight = {"min": min(weight.values(), default=1.0), "max": max(weight.values(), default=1.0)}
    return {"module_id": choice.module.module_id, "version": choice.module.version, "weight": weight}


def _weight(choice: ModuleChoice) -> str:
    weight = _choice_json(choice)["weight"]
    return f"{weight['min']:.2g}–{weight['max']:.2g}" if isinstance(weight, dict) else f"{weight:g}"
