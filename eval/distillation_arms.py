"""The processes that `distillation_speed.py` compares: each does one thing and says on stdout, in JSON, how it went.

    python eval/distillation_arms.py SPEC.json

SPEC names the arm ("curriculum", "reference", "hybridqa", "score", "bounds", "pace" or "ablation") and what it needs.
Seconds of training leave out the process's start, the model's loading and the writing of snapshots; they count
everything else, the teacher and what a trainer makes ready included. Memory is the process's own peak.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from held_out_loss import held_out_loss, plugged, read_snapshot, write_snapshot
from reference_recipe import DistilledPair, Reference, ReferenceSettings

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.config import Settings
from hybridqa.engine.vllm_args import context_length
from hybridqa.models import load_tokenizer
from hybridqa.training.frozen import decoder_layers
from hybridqa.training.objectives import TeacherTargets
from hybridqa.training.packing import Example
from hybridqa.training.recipe import Recipe
from hybridqa.training.schedule import rows_of, steps_of
from hybridqa.training.synthesis import Curriculum, Synthesiser
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import closed_example, first_lessons, sourced_example

TEACHER_TOKENS = 1024  # of one packed row while hybridqa's teacher reads, as in its worker
Spec = dict[str, Any]


class Clock:
    """Seconds of training: what is done inside `paused` does not count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._paused = 0.0
        self._started = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def seconds(self) -> float:
        """So far."""
        return self._now() - self._started - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still."""
        begun = self._now()
        yield
        self._paused += self._now() - begun


def peak_mb() -> float:
    """The most memory this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held before it became this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def memory(device: torch.device, loaded_mb: float) -> dict[str, float]:
    """Peaks in MB: after loading, in the end, and the GPU's."""
    found = {"loaded_mb": loaded_mb, "peak_mb": peak_mb()}
    if device.type == "cuda":
        found["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return found


def device_name(device: torch.device) -> str:
    """What trained."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


# The data


def make_prompts(model_path: str) -> PromptBuilder:
    """The prompts of a store with default settings."""
    defaults = Settings()
    return PromptBuilder(
        load_tokenizer(Path(model_path)),
        max_model_len=context_length(Path(model_path), defaults.max_model_len),
        context_tokens=defaults.context_tokens,
    )


def read_curriculum(path: str) -> Curriculum:
    """The curriculum that `curriculum` wrote."""
    return Curriculum.from_dict(json.loads(Path(path).read_text(encoding="utf-8"))["curriculum"])


def curriculum(spec: Spec) -> Spec:
    """Has the engine write one document's curriculum, as `hybridqa refresh` does, and keeps it in a file."""
    import asyncio

    from hybridqa.engine.environment import prepare_environment

    prepare_environment()
    from hybridqa.engine.loop import together
    from hybridqa.engine.protocol import Completion, Sampling
    from hybridqa.engine.vllm import VllmEngine
    from hybridqa.evaluation.datasets import read_documents
    from hybridqa.ingest.passages import split_passages
    from hybridqa.ingest.readers import read_path
    from hybridqa.ingest.sentences import split_sentences
    from hybridqa.ingest.source import SourceText, normalise
    from hybridqa.models import DEFAULT_EMBEDDER, resolve_embedder, resolve_model
    from hybridqa.retrieval.embedder import Embedder
    from hybridqa.training.generator import EngineGenerator
    from hybridqa.training.lesson import chunks

    settings = Settings()
    model = resolve_model(spec["model"], settings.cache_dir)
    if spec["docs"]:
        named = [each for each in read_documents(Path(spec["docs"])) if each.doc_id == spec["document"]]
        if not named:
            sys.exit(f"no document {spec['document']!r} in {spec['docs']!r}; expected one of its doc_ids")
        source = SourceText(named[0].title, normalise(named[0].text), "text/plain")
    else:
        source = read_path(Path(spec["document"]), max_bytes=50_000_000)
    end = 0
    for _, sentence_end in split_sentences(source.text):  # whole sentences, at least one
        if spec["words"] and end and len(source.text[:sentence_end].split()) > spec["words"]:
            break
        end = sentence_end
    text = source.text[:end]
    headings = [heading for heading in source.headings if heading.start < end]
    embedder = Embedder(resolve_embedder(DEFAULT_EMBEDDER))
    drafts = split_passages(text, headings, embedder.count_tokens, min(settings.passage_tokens, embedder.max_tokens))
    prompts = make_prompts(str(model.path))
    engine = VllmEngine(model, max_model_len=settings.max_model_len, seed=spec["seed"])
    asyncio.run(engine.start())

    def complete(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        async def work() -> list[Completion]:
            return await together(engine.generate(ids, sampling) for ids in prompts)

        return asyncio.run(work())

    length = context_length(model.path, settings.max_model_len)
    generator = EngineGenerator(complete, prompts, max_model_len=length, identity=model.hash)
    pieces = chunks(drafts, lambda text: len(prompts.encode_plain(text)))  # type: ignore[arg-type]  # heading, text
    [made] = Synthesiser(generator, seed=spec["seed"]).run([(source.title, pieces)])
    asyncio.run(engine.close())
    about = {"document": Path(spec["document"]).name, "words": len(text.split()), "seed": spec["seed"]}
    about["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    kept = {"about": about, "model_hash": model.hash, "curriculum": asdict(made)}
    Path(spec["curriculum"]).write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    return {}


def distilled(prompts: PromptBuilder, lesson: Curriculum) -> list[DistilledPair]:
    """The curriculum's pairs as the reference takes them: in the wording that serves, which the held-out ones have."""
    made = []
    for key, pair in enumerate(lesson.pairs):
        student, teacher = closed_example(prompts, pair, key, 0), sourced_example(prompts, pair, key, lesson)
        made.append(DistilledPair(tuple(teacher.prompt), tuple(student.prompt), tuple(student.target)))
    return made


# Whole runs


class Curve:
    """Writes the adapter down now and then while it is trained; `points` say when."""

    def __init__(self, folder: str, clock: Clock, weights: Callable[[], dict[str, Any]], wanted: int) -> None:
        self.points: list[dict[str, Any]] = []
        self._folder = Path(folder)
        self._clock = clock
        self._weights = weights
        self._wanted = wanted

    def see(self, step: int, total: int, *, passes: float, targets: int) -> None:
        """Called after each step; `targets` are the answer tokens that were learned from so far."""
        if step % max(1, total // self._wanted) == 0 or step in (0, total):
            self.add(step, passes=passes, targets=targets)

    def add(self, step: int, *, passes: float, targets: int) -> None:
        """One more point."""
        seconds = self._clock.seconds()
        with self._clock.paused():
            write_snapshot(self._folder / f"{step}.safetensors", self._weights())
        self.points.append({"step": step, "seconds": seconds, "passes": passes, "targets": targets})


def reference(spec: Spec) -> Spec:
    """One run of the plain recipe."""
    settings = ReferenceSettings(**spec["settings"])
    run = Reference(Path(spec["model_path"]), settings, device=spec["device"])
    pairs = distilled(make_prompts(spec["model_path"]), read_curriculum(spec["curriculum"]))
    loaded_mb = peak_mb()
    clock = Clock(run.device)
    curve = Curve(spec["snapshots"], clock, run.parameters, spec["points"])
    curve.see(0, settings.steps, passes=0, targets=0)
    seen = [0, 0]  # pairs, answer tokens

    def on_step(step: int, total: int, batch: Sequence[DistilledPair]) -> None:
        seen[0] += len(batch)
        seen[1] += sum(len(pair.target) for pair in batch)
        curve.see(step, total, passes=seen[0] / len(pairs), targets=seen[1])

    run.train(pairs, on_step)
    return {
        "settings": asdict(settings),
        "device": device_name(run.device),
        "pairs": len(pairs),
        "points": curve.points,
        "memory": memory(run.device, loaded_mb),
    }


def hybridqa(spec: Spec) -> Spec:
    """One run of hybridqa's trainer on the pairs that the reference has: no second round, no prompts to leave alone."""
    trainer = make_trainer(spec)
    recipe = Recipe(**spec["recipe"])
    lesson = read_curriculum(spec["curriculum"])
    prompts = make_prompts(spec["model_path"])
    loaded_mb = peak_mb()
    clock = Clock(trainer.device)
    trainer.attach(recipe)
    students = first_lessons(prompts, lesson, lesson.pairs, recipe, max_model_len=Settings().max_model_len)
    teachers = teach(trainer, prompts, lesson, recipe)
    teacher_seconds = clock.seconds()
    with clock.paused():
        rows = rows_of(students, recipe)
        plan = steps_of(rows, recipe)
    curve = Curve(spec["snapshots"], clock, trainer.parameters, spec["points"])
    curve.add(0, passes=0, targets=0)
    last = targets = 0

    def on_step(step: int, total: int, _: float) -> None:
        nonlocal last, targets
        last = step
        row = rows[plan[step - 1]]
        if row.taught:  # answers: not the document's own text
            targets += sum(len(item.target) for item in row.examples)
        curve.see(step, total, passes=step / len(rows), targets=targets)

    trainer.fit(students, teachers, recipe, on_step=on_step)
    if curve.points[-1]["step"] != last:  # it stopped before its last step
        curve.add(last, passes=last / len(rows), targets=targets)
    return {
        "recipe": asdict(recipe),
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "device": device_name(trainer.device),
        "pairs": len(lesson.pairs),
        "examples": sum(len(examples) for examples in students),
        "teacher_seconds": teacher_seconds,
        "points": curve.points,
        "memory": memory(trainer.device, loaded_mb),
    }


def make_trainer(spec: Spec) -> Trainer:
    """hybridqa's trainer in the numeric type that is asked for."""
    return Trainer(Path(spec["model_path"]), device=spec["device"], dtype=spec["dtype"])


def teach(
    trainer: Trainer, prompts: PromptBuilder, lesson: Curriculum, recipe: Recipe, *, tokens: int = TEACHER_TOKENS
) -> list[TeacherTargets]:
    """The teacher's targets by pair; each chunk's pairs stand together while it reads."""
    order = sorted(range(len(lesson.pairs)), key=lambda key: lesson.pairs[key].passage)
    examples = [sourced_example(prompts, lesson.pairs[key], key, lesson) for key in order]
    taught = trainer.teach(examples, recipe, hidden=recipe.weights().hidden > 0, tokens=tokens)
    return [targets for _, targets in sorted(zip(order, taught, strict=True), key=lambda item: item[0])]


def score(spec: Spec) -> Spec:
    """The held-out loss at every snapshot of a run, by its file's number."""
    model, examples = judge(spec, closed=True)
    losses = {}
    for path in Path(spec["snapshots"]).glob("*.safetensors"):
        with plugged(model, read_snapshot(path), spec["scale"]):
            losses[path.stem] = held_out_loss(model, examples)
    return {"losses": losses}


def bounds(spec: Spec) -> Spec:
    """The held-out loss of the base model, and with the chunk in its prompt: the same for every trainer."""
    return {name: held_out_loss(*judge(spec, closed=name == "base")) for name in ("base", "teacher")}


def judge(spec: Spec, *, closed: bool) -> tuple[Any, list[tuple[Sequence[int], Sequence[int]]]]:
    """The base model in float32, and the held-out pairs as (prompt, target), with or without their chunk."""
    from transformers import AutoModelForCausalLM

    lesson = read_curriculum(spec["curriculum"])
    prompts = make_prompts(spec["model_path"])
    held_out = enumerate(lesson.held_out)
    examples = [
        closed_example(prompts, pair, key, 0) if closed else sourced_example(prompts, pair, key, lesson)
        for key, pair in held_out
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(spec["model_path"], dtype=torch.float32).eval()
    model.to(spec["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, [(item.prompt, item.target) for item in examples]


# Seconds a pass


def pace(spec: Spec) -> Spec:
    """The reference's seconds per pair for each batch size, in one numeric type: the median of a few steps."""
    settings = ReferenceSettings(dtype=spec["dtype"], rank=spec["rank"], alpha=spec["alpha"])
    run = Reference(Path(spec["model_path"]), settings, device=spec["device"])
    pairs = distilled(make_prompts(spec["model_path"]), read_curriculum(spec["curriculum"]))
    return {
        "seconds_per_pair": {
            str(size): seconds_per_pair(run, pairs, size, spec["repeats"]) for size in spec["batches"]
        },
        "memory": memory(run.device, 0.0),
    }


def seconds_per_pair(run: Reference, pairs: Sequence[DistilledPair], size: int, repeats: int) -> float:
    """The median over steps of `size` drawn pairs."""
    rng = random.Random(0)
    run.settings = replace(run.settings, batch=size, steps=1)
    times = []
    for _ in range(repeats + 1):
        batch = rng.sample(pairs, min(size, len(pairs)))
        clock = Clock(run.device)
        run.train(batch, lambda *_: None)
        times.append(clock.seconds() / len(batch))
    return statistics.median(times[1:])  # the first warms up


def ablation(spec: Spec) -> Spec:
    """hybridqa's seconds per pass over some pairs with one of its ways switched off.

    What the recipe or the numeric type decides comes in the spec; the rest is done here, by `way`. One pass is timed;
    what the teacher takes is spread over all passes of the recipe.
    """
    way = spec["way"]
    trainer = make_trainer(spec)
    whole = read_curriculum(spec["curriculum"])
    lesson = replace(whole, pairs=whole.pairs[: spec["pairs"]])
    prompts = make_prompts(spec["model_path"])
    recipe = Recipe(**spec["recipe"])
    students = first_lessons(prompts, lesson, lesson.pairs, recipe, max_model_len=Settings().max_model_len)
    if way == "packing":
        students = [[example] for examples in students for example in examples]
    rows = rows_of(students, recipe)
    passes = len(steps_of(rows, recipe)) / len(rows)
    recipe = replace(recipe, steps=len(rows))
    plan = steps_of(rows, recipe)
    tokens = 1 if way == "shared chunk" else TEACHER_TOKENS
    if way == "attention":
        trainer._apart = False  # attention under one mask for the whole row
    if way == "lower layers" and recipe.first_layer > 0:
        trainer.lower = lambda row: None  # type: ignore[method-assign]
    widened = widen_logits(trainer) if way == "logits" else None
    if way == "compile":
        for layer in decoder_layers(trainer.base, trainer.base.config.get_text_config().num_hidden_layers):
            layer.compile(dynamic=True)
    sourced: list[Example] = [sourced_example(prompts, pair, key, lesson) for key, pair in enumerate(lesson.pairs)]

    def on_step(step: int, _: int, __: float) -> None:
        if way == "kept answers":  # the pairs of this step, read anew
            keys = sorted(item.key for item in rows[plan[step - 1]].examples if item.key >= 0)  # text has no teacher
            trainer.teach(
                [sourced[key] for key in keys], recipe, hidden=recipe.weights().hidden > 0, tokens=TEACHER_TOKENS
            )

    runs = []
    for repeat in range(spec["repeats"] + 1):
        warm_up = repeat == 0 and way != "compile"  # which takes a whole run to have seen every length
        used = replace(recipe, steps=2) if warm_up else recipe
        clock = Clock(trainer.device)
        trainer.attach(used)
        teachers = teach(trainer, prompts, lesson, used, tokens=tokens)
        taught = clock.seconds()
        trainer.fit(students, teachers, used, on_step=on_step)
        runs.append((taught, clock.seconds() - taught))
    if widened is not None and not widened():
        return {"skipped": "the trainer does not ask the model for chosen places' logits"}
    teacher, student = (statistics.median(times) for times in zip(*runs[1:], strict=True))
    if way == "kept answers":
        teacher = 0.0  # it is in the student's
    return {
        "seconds_per_pass": teacher / passes + student,
        "teacher_seconds": teacher,
        "student_seconds_per_pass": student,
        "passes": passes,
        "steps_per_pass": len(rows),
        "repeats": [round(sum(times), 3) for times in runs[1:]],
        "memory": memory(trainer.device, 0.0),
    }


def widen_logits(trainer: Trainer) -> Callable[[], bool]:
    """Makes the model compute every place's logits before the wanted ones are taken; says whether any were wanted."""
    plain = trainer.base.forward
    seen = []

    def forward(*inputs: Any, **options: Any) -> Any:
        kept = options.pop("logits_to_keep", None)
        output = plain(*inputs, **options)
        if isinstance(kept, torch.Tensor):
            seen.append(True)
            output.logits = output.logits[:, kept]
        return output

    trainer.base.forward = forward
    return lambda: bool(seen)


ARMS = {arm.__name__: arm for arm in (curriculum, reference, hybridqa, score, bounds, pace, ablation)}


def main() -> None:
    """Does what the spec file says."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(ARMS[spec["arm"]](spec)))


if __name__ == "__main__":
    main()
