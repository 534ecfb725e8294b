"""Trains the extractors that come with the package, on documents of several collections.

    python eval/bundled_extractors.py --data FOLDER --work FOLDER --output hybridqa/extractors/smollm2-135m

FOLDER holds NAME.docs.jsonl and NAME.questions.jsonl of the collections that `--from` names, with how many documents of
each; those that get modules are the shortest of them, the quickest to distil. One extractor is trained with modules,
its twin on the passages alone: the fair comparison. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from hybridqa import HybridQA
from hybridqa.modules.manifest import read_manifest

PARTS = ("amazon_train=16", "newwiki_train=10", "covidqa=14")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a new folder for both")
    parser.add_argument("--from", dest="parts", nargs="+", default=PARTS, metavar="NAME=COUNT")
    parser.add_argument("--questions", type=int, default=10, help="of each document, at most")
    parser.add_argument("--module-documents", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    docs, questions = options.work / "mixed.docs.jsonl", options.work / "mixed.questions.jsonl"
    mix(options.data, dict(part.split("=") for part in options.parts), docs, questions, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    with HybridQA.open(options.work / "store", create=True, seed=options.seed) as qa:
        steps = 0  # the twin gets as many as the first, which has more exercises
        for name, modules in (("extractor", True), ("extractor-passages", False)):
            if (options.output / name).exists():  # by an earlier run
                steps = read_manifest(options.output / name).metrics["train"]["steps"]
                continue
            made = qa.train_extractor(
                docs,
                questions,
                work=options.work / "documents",
                questions_per_document=options.questions,
                modules=modules,
                module_documents=options.module_documents,
                steps=steps,
                output=options.output / name,
                on_event=lambda event: print(event.stage, f"{event.step}/{event.total}", event.message, flush=True),
            )
            steps = made.metrics["train"]["steps"]
            print(name, made.state, made.reason, f"{made.seconds:.0f} s", flush=True)


def mix(data: Path, parts: dict[str, str], docs: Path, questions: Path, seed: int) -> None:
    """Documents of several collections and all their questions; ids get their collection's name."""
    rng = random.Random(seed)
    documents: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    for name, count in parts.items():
        every = read(data / f"{name}.questions.jsonl")
        known = {doc_id for question in every for doc_id in question["doc_ids"]}
        candidates = [document for document in read(data / f"{name}.docs.jsonl") if document["doc_id"] in known]
        chosen = rng.sample(candidates, int(count))
        ids = {document["doc_id"] for document in chosen}
        documents += [{**document, "doc_id": f"{name}/{document['doc_id']}"} for document in chosen]
        asked += [
            {
                **question,
                "qid": f"{name}/{question['qid']}",
                "doc_ids": [f"{name}/{doc_id}" for doc_id in question["doc_ids"]],
            }
            for question in every
            if ids.issuperset(question["doc_ids"])
        ]
    for path, lines in ((docs, documents), (questions, asked)):
        path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


if __name__ == "__main__":
    main()
