"""A training job on disk: what to learn, from which document version, by which recipe; text, no token ids.

Knows nothing about torch. Invariant: a job's folder name is a hash of everything that decides its result but the other
modules and documents that it happened to find, which are on record in it: a finished job is found again after a kill,
an outdated one never is, and one taken up again has the others that it began with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridqa.files import atomic_write_text
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Passage

# 2: curricula with a reserve and sampled answers; 3: with contexts; 4: half the answers are sentences; 5: more wordings
# of a short document
JOB_FORMAT = 5
CHECKPOINT = "checkpoint.safetensors"  # in a job's folder, once its training has come so far
BESIDE = "beside.json"  # in it, once it has begun: the other modules that it trains beside
CHUNK_TOKENS = 320  # what the teacher reads at once, in the base model's tokens
LONGEST_PIECE = 2 * CHUNK_TOKENS  # of one passage


@dataclass(frozen=True, slots=True)
class Job:
    """One document to distil."""

    collection: str
    doc_id: str
    content_hash: str
    module_id: str
    model_name: str  # as its user calls it
    model_path: str
    model_hash: str
    context_tokens: int
    max_model_len: int
    recipe: dict[str, Any]
    curriculum: Curriculum
    companions: tuple[str, ...] = ()  # folders of other documents' modules, to train and be judged beside
    off_topic: tuple[tuple[str, str], ...] = ()  # questions about other documents, and their answers

    def save(self, folder: Path) -> None:
        """Writes the job into its folder."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / "job.json", json.dumps({"format": JOB_FORMAT, **asdict(self)}, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Reads a job from its folder.

        Raises `OSError`, `ValueError`, `KeyError` or `TypeError` for one that is missing, damaged or of another format.
        """
        data = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        if data.pop("format") != JOB_FORMAT:
            raise ValueError(f"{str(folder)!r} is no job of format {JOB_FORMAT}.")
        curriculum = Curriculum.from_dict(data.pop("curriculum"))
        companions = tuple(data.pop("companions", ()))
        off_topic = tuple((question, answer) for question, answer in data.pop("off_topic", ()))
        return cls(**data, curriculum=curriculum, companions=companions, off_topic=off_topic)


def job_name(
    module_id: str, content_hash: str, model_hash: str, recipe: dict[str, Any], made_with: Sequence[Any]
) -> str:
    """The folder of the job that these decide; `made_with` are the settings that its synthetic data hangs on."""
    text = json.dumps([JOB_FORMAT, module_id, content_hash, model_hash, recipe, list(made_with)], sort_keys=True)
    return f"job-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def chunks(passages: Sequence[Passage], count: Callable[[str], int]) -> list[str]:
    """Neighbouring passages joined up to `CHUNK_TOKENS`, with their headings: what the teacher reads at once.

    `count` gives a text's length in the base model's tokens: words say little about texts that write none apart. Where
    it has many more tokens than the embedder, such as for a script that the latter does not know, a passage is taken
    in pieces of at most `LONGEST_PIECE`.
    """
    joined: list[str] = []
    current: list[str] = []
    tokens = 0
    for heading, piece in ((each.heading, piece) for each in passages for piece in pieces(each.text, count)):
        text = f"{heading}\n\n{piece}" if heading else piece
        size = count(text)
        if current and tokens + size > CHUNK_TOKENS:
            joined.append("\n\n".join(current))
            current, tokens = [], 0
        current.append(text)
        tokens += size
    if current:
        joined.append("\n\n".join(current))
    return joined


def pieces(text: str, count: Callable[[str], int]) -> list[str]:
    """The text itself, or where it is too long its halves, and theirs: parted at a line, a sentence, a word if any."""
    if count(text) <= LONGEST_PIECE or len(text) < 2:
        return [text]
    middle = len(text) // 2
    for parting in ("\n", ". ", " "):
        after = text.find(parting, middle // 2, middle + middle // 2)
        while 0 <= after < middle:  # the last one before the middle may be nearer than the first behind it
            further = text.find(parting, after + 1, middle + middle // 2)
            if further < 0 or further - middle > middle - after:
                break
            after = further
        if after >= 0:
            middle = after + len(parting)
            break
    halves = (text[:middle].strip(), text[middle:].strip())
    return [piece for half in halves if half for piece in pieces(half, count)]
