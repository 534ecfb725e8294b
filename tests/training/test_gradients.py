"""The four objectives, written out from their papers, against the trainer: equal loss, equal gradients.

Part one is a plain implementation that shares no code with the trainer: transformers' model and peft's LoRA in float32,
one pair at a time without padding, the teacher reading its context anew for each, logits of the whole vocabulary at
every place. Part two takes one training step with each shortcut on and off, on the same weights, and compares.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hybridqa.training.kept import Kept
from hybridqa.training.objectives import TeacherTargets
from hybridqa.training.packing import Example, pack
from hybridqa.training.recipe import Recipe
from hybridqa.training.targets import KeptTargets, Teachers
from hybridqa.training.trainer import Trainer

TOLERANCE = 1e-5
LAYERS = 4  # of every tiny decoder
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """What the teacher reads first, what both are asked, and what both should say."""

    context: Tokens
    question: Tokens
    answer: Tokens


# Part one: the formulas


def read(model: Any, prompt: Tokens, answer: Tokens) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, V) that predict the N tokens of the answer, and what each layer says in the same places, (N, D) each.

    A model's output at place i is about token i + 1, so the answer is predicted from one place before it on. The first
    of the hidden states is the embedding, which no adapter changes: it is no layer's output.
    """
    output = model(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
    places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return output.logits[0, places], [states[0, places] for states in output.hidden_states[1:]]


def kl_of_tokens(teacher_N_V: Tensor, student_N_V: Tensor, heat: float) -> Tensor:
    """T² Σ p log(p / q) over the vocabulary, p and q softened by the temperature T."""
    p, q = (teacher_N_V / heat).softmax(-1), (student_N_V / heat).softmax(-1)
    return heat**2 * (p * (p.log() - q.log())).sum(-1)


def entropy_of_tokens(student_N_V: Tensor, answer: Tokens) -> Tensor:
    """-log q(token)."""
    return torch.stack([-row.softmax(-1)[token].log() for row, token in zip(student_N_V, answer, strict=True)])


def dcd(student: Any, teacher: Any, pairs: Sequence[Pair], recipe: Recipe) -> Tensor:
    """Deep Context Distillation (2503.08727): KL + Σ_l |h_student - h_teacher| / |h_teacher|, over the trained layers.

    With trust, each token's share of it is the teacher's probability of the token, and cross-entropy has the rest.
    """
    first = int(LAYERS * recipe.first_layer)
    parts, distance_L, norm_L = [], torch.zeros(LAYERS - first), torch.zeros(LAYERS - first)
    for pair in pairs:
        with torch.no_grad():
            teacher_N_V, teacher_layers = read(teacher, pair.context + pair.question, pair.answer)
        student_N_V, student_layers = read(student, pair.question, pair.answer)
        p = torch.stack([row.softmax(-1)[token] for row, token in zip(teacher_N_V, pair.answer, strict=True)])
        trust, doubt = (p, 1 - p) if recipe.trust else (torch.ones_like(p), torch.ones_like(p))
        kl = kl_of_tokens(teacher_N_V, student_N_V, recipe.temperature)
        entropy = entropy_of_tokens(student_N_V, pair.answer)
        parts.append(recipe.kl * trust * kl + recipe.cross_entropy * doubt * entropy)
        for layer in range(first, LAYERS):
            h_student, h_teacher = student_layers[layer], teacher_layers[layer]
            distance_L[layer - first] += (trust * (h_student - h_teacher).abs().sum(-1)).sum()
            norm_L[layer - first] += (trust * h_teacher.abs().sum(-1)).sum()
    return torch.cat(parts).mean() + recipe.hidden * (distance_L / norm_L).mean()


def prompt_distillation(student: Any, teacher: Any, pairs: Sequence[Pair], recipe: Recipe) -> Tensor:
    """Prompt distillation (2412.14964): KL between the teacher with the context and the student without it."""
    parts = []
    for pair in pairs:
        with torch.no_grad():
            teacher_N_V, _ = read(teacher, pair.context + pair.question, pair.answer)
        student_N_V, _ = read(student, pair.question, pair.answer)
        parts.append(kl_of_tokens(teacher_N_V, student_N_V, recipe.temperature))
    return torch.cat(parts).mean()


def sft(student: Any, _: Any, pairs: Sequence[Pair], __: Recipe) -> Tensor:
    """Cross-entropy of the answers."""
    return torch.cat(
        [entropy_of_tokens(read(student, pair.question, pair.answer)[0], pair.answer) for pair in pairs]
    ).mean()


def next_token(student: Any, _: Any, pairs: Sequence[Pair], __: Recipe) -> Tensor:
    """Cross-entropy of the answers and of every token of the texts but the first."""
    parts = [entropy_of_tokens(read(student, pair.question, pair.answer)[0], pair.answer) for pair in pairs]
    for text in dict.fromkeys(pair.context for pair in pairs):
        parts.append(entropy_of_tokens(read(student, text[:1], text[1:])[0], text[1:]))
    return torch.cat(parts).mean()


Formula = Callable[[Any, Any, Sequence[Pair], Recipe], Tensor]
PLAIN: dict[str, Formula] = {
    "dcd": dcd,
    "prompt-distillation": prompt_distillation,
    "next-token": next_token,
    "sft": sft,
}

# Part two: the trainer

CASES: dict[str, dict[str, Any]] = {
    "dcd": {"objective": "dcd", "trust": False, "cross_entropy": 0.0, "temperature": 2.0},
    "dcd-trust": {"objective": "dcd"},
    "prompt-distillation": {"objective": "prompt-distillation", "temperature": 2.0},
    "next-token": {"objective": "next-token"},
    "sft": {"objective": "sft"},
}


def make_pairs(*, alike: bool) -> list[Pair]:
    """Eight random pairs over two contexts; their questions begin alike, or each in its own way."""
    rng = random.Random(7)

    def draw(least: int, most: int) -> Tokens:
        return tuple(rng.randrange(2, 97) for _ in range(rng.randint(least, most)))

    head = draw(5, 5)
    contexts = draw(9, 12), draw(9, 12)
    return [
        Pair(contexts[number % 2], (*(head if alike else (2 + number,)), *draw(2, 6)), draw(1, 5))
        for number in range(8)
    ]


def students_of(pairs: Sequence[Pair], recipe: Recipe) -> list[Example]:
    """What the trainer gets for these pairs."""
    examples = [Example(pair.question, pair.answer, key) for key, pair in enumerate(pairs)]
    if recipe.objective == "next-token":
        texts = dict.fromkeys(pair.context for pair in pairs)
        examples.extend(Example(text[:1], text[1:], -1) for text in texts)
    return examples


def teachers_of(pairs: Sequence[Pair]) -> list[Example]:
    return [Example(pair.context + pair.question, pair.answer, key) for key, pair in enumerate(pairs)]


@dataclass(frozen=True)
class Step:
    """A loss and its gradients by the saved adapter's names."""

    loss: float
    gradients: dict[str, Tensor]


class Bench:
    """A trainer with a random adapter, and a plain model with the same one, read from the folder it was saved to."""

    def __init__(self, model: Path, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.trainer = Trainer(model, device="cpu")
        self.longest = 0  # of the rows that the trainer's model was given
        self.trainer.base.register_forward_pre_hook(self._look, with_kwargs=True)
        self.trainer.attach(recipe)
        torch.manual_seed(3)
        with torch.no_grad():
            for weight in self.trainer.parameters().values():
                weight.normal_(std=0.1)  # B too: where B is 0, A has no gradient
        self.trainer.save(folder)  # rounds the attached weights to what it writes
        self.saved = {key: weight.float() for key, weight in load_file(folder / "adapter_model.safetensors").items()}
        self.teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.student = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()

    def _look(self, _: Any, __: Any, options: dict[str, Any]) -> None:
        self.longest = max(self.longest, options["input_ids"].numel())

    def plain(self, pairs: Sequence[Pair], formula: Formula | None = None) -> Step:
        """By part one, clipped to a norm of 1 as a training step does."""
        self.student.zero_grad()
        loss = (formula or PLAIN[self.recipe.objective])(self.student, self.teacher, pairs, self.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {
            name.replace(".default.", "."): weight.grad.clone()
            for name, weight in self.student.named_parameters()
            if weight.grad is not None
        }
        norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
        assert norm > 0.05, "too small to show a mistake"
        assert all(bool(gradient.any()) for gradient in gradients.values())
        scale = min(1.0, 1.0 / (norm + 1e-6))
        return Step(float(loss.detach()), {name: gradient * scale for name, gradient in gradients.items()})

    def trained(self, examples: Sequence[Example], targets: Teachers, *, steps: int = 1, memory_mb: int = 99) -> Step:
        """By the last of some equal steps of the trainer, at learning rate 0."""
        recipe = replace(self.recipe, steps=steps, memory_mb=memory_mb)
        report = self.trainer.fit([examples], targets, recipe)
        gradients = {}
        for weight in self.trainer.parameters().values():  # found by value: a name inside the trainer is its own affair
            (key,) = (key for key, saved in self.saved.items() if torch.equal(saved, weight))
            assert weight.grad is not None, key
            gradients[key] = weight.grad.clone()
        return Step(report["loss"], gradients)

    def teach(self, pairs: Sequence[Pair], **options: Any) -> list[TeacherTargets]:
        """Nothing for an objective without a teacher: `trained` must do without."""
        if not self.recipe.weights().need_teacher:
            return []
        return self.trainer.teach(teachers_of(pairs), self.recipe, **options)


def assert_equal(found: Step, expected: Step) -> None:
    assert found.loss == pytest.approx(expected.loss, abs=TOLERANCE)
    assert found.gradients.keys() == expected.gradients.keys() and found.gradients
    for name, gradient in expected.gradients.items():
        assert float((found.gradients[name] - gradient).abs().max()) < TOLERANCE, name
    names = sorted(expected.gradients)
    one, other = (torch.cat([step.gradients[name].flatten() for name in names]) for step in (found, expected))
    assert float((one - other).norm()) < TOLERANCE * float(other.norm())  # also as a share of the whole


@pytest.fixture(scope="session")
def loud_decoder(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with larger weights: a fresh one says almost the same whatever it reads, and KL would be 0."""
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    folder = tmp_path_factory.mktemp(f"loud-{tiny_decoder.name}")
    model.save_pretrained(folder)
    return folder


def recipe_of(case: str, **changes: Any) -> Recipe:
    """One exact step: all logits, hidden states in float32, every example in one pack."""
    exact: dict[str, Any] = {"top_k": 0, "keep_dtype": "float32", "pack_tokens": 10_000, "steps": 1}
    return Recipe(rank=4, alpha=8, learning_rate=0.0, echoed=0.0, **{**exact, **CASES[case], **changes})


@pytest.mark.parametrize(
    ("case", "first_layer"),
    [*((case, 0.5) for case in CASES), ("dcd-trust", 0.0)],
    ids=[*CASES, "dcd-trust-every-layer"],
)
def test_the_trainer_takes_the_papers_step(
    loud_decoder: Path, case: str, first_layer: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(case, first_layer=first_layer)
    bench = Bench(loud_decoder, recipe, tmp_path)
    pairs, apart = make_pairs(alike=True), make_pairs(alike=False)
    kept = bench.teach(pairs)  # once, packed by the contexts that they share
    expected = bench.plain(pairs)

    # All in one pack: prefixes shared; the lower layers run at the first step and are kept for the next.
    for steps in (1, 3):
        assert_equal(bench.trained(students_of(pairs, recipe), kept, steps=steps), expected)

    packed = pack(students_of(pairs, recipe))
    if "granitemoehybrid" not in loud_decoder.name:  # whose state runs along the row: never packed
        assert bench.longest >= len(packed) > max(len(item.prompt) + len(item.target) for item in packed.examples)

    # No memory to keep anything in: files hold it.
    with Kept(0) as shelf:
        in_files = KeptTargets(shelf)
        assert bench.teach(pairs, keep=in_files) == []
        assert_equal(bench.trained(students_of(pairs, recipe), in_files, steps=2, memory_mb=0), expected)

    # The teacher reads anew, each pair alone.
    assert_equal(bench.trained(students_of(pairs, recipe), bench.teach(pairs, tokens=1)), expected)

    # Each example alone, without a pack, from the targets that were kept of all.
    students = students_of(pairs, recipe)
    for item in (students[0], students[3], students[-1]):
        alone = pairs[item.key] if item.key >= 0 else Pair((), item.prompt, item.target)
        formula = sft if case == "next-token" else None  # what it is for one row, be it an answer or a text
        assert_equal(bench.trained([item], kept), bench.plain([alone], formula))

    # Nothing shared at the beginning.
    assert_equal(bench.trained(students_of(apart, recipe), bench.teach(apart)), bench.plain(apart))

    # The lower layers run anew at every step.
    monkeypatch.setattr(bench.trainer, "lower", lambda row: None)
    assert_equal(bench.trained(students_of(pairs, recipe), kept), expected)
