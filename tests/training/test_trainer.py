"""The trainer: packs equal single runs, a resumed run equals an unbroken one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridqa.errors import TrainingError
from hybridqa.training.checkpoint import CHECKPOINT
from hybridqa.training.kept import Kept
from hybridqa.training.objectives import TeacherTargets
from hybridqa.training.packing import Example, group, pack, shared_length
from hybridqa.training.recipe import Recipe
from hybridqa.training.schedule import rows_of, second_plan, steps_of
from hybridqa.training.targets import KeptTargets
from hybridqa.training.trainer import Trainer


def examples(count: int, *, seed: int = 0, prefix: int = 5) -> list[Example]:
    """Random prompts that begin alike, with random targets."""
    rng = random.Random(seed)
    head = [rng.randrange(2, 97) for _ in range(prefix)]
    made = []
    for key in range(count):
        prompt = (*head, *(rng.randrange(2, 97) for _ in range(rng.randint(1, 6))))
        made.append(Example(prompt, tuple(rng.randrange(2, 97) for _ in range(rng.randint(1, 5))), key))
    return made


def plain_outputs(model: torch.nn.Module, item: Example) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, V) that predict the target's tokens and each layer's hidden states there, by one plain pass."""
    ids = torch.tensor([[*item.prompt, *item.target]])
    output = model(input_ids=ids, output_hidden_states=True)
    first = len(item.prompt) - 1
    rows = slice(first, first + len(item.target))
    return output.logits[0, rows], [state[0, rows] for state in output.hidden_states[1:]]


def test_a_pack_gives_what_each_example_gives_alone(tiny_decoder: Path) -> None:
    trainer = Trainer(tiny_decoder, device="cpu")
    items = examples(6)
    row = pack(items)
    assert len(row) < sum(len(item.prompt) + len(item.target) for item in items)
    with torch.no_grad():
        logits_N_V, states_N_L_D, targets_N = trainer.forward(row, hidden=True)
        plain = [plain_outputs(trainer.base, item) for item in items]
    assert torch.allclose(logits_N_V, torch.cat([logits for logits, _ in plain]), atol=1e-5)
    assert targets_N.tolist() == [token for item in items for token in item.target]
    assert states_N_L_D is not None
    for layer in range(4):
        assert torch.allclose(states_N_L_D[:, layer], torch.cat([states[layer] for _, states in plain]), atol=1e-5)


def test_examples_that_share_nothing_or_all_are_packed_right(tiny_llama: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    for items in (
        [Example((3, 4), (5,)), Example((6, 7, 8), (9, 10))],
        [Example((3, 4, 5), (6, 7)), Example((3, 4, 5), (8,))],
        [Example((3,), (4, 5, 6))],
    ):
        with torch.no_grad():
            logits_N_V, _, _ = trainer.forward(pack(items), hidden=False)
            plain = torch.cat([plain_outputs(trainer.base, item)[0] for item in items])
        assert torch.allclose(logits_N_V, plain, atol=1e-5)


def test_the_teacher_reads_examples_as_their_rows_come_up(tiny_llama: Path, tmp_path: Path) -> None:
    """A long document's prompts, each with its chunk, would fill the memory together."""
    trainer = Trainer(tiny_llama, device="cpu")
    items = examples(40, prefix=9)
    made: list[int] = []
    there: list[int] = []  # how many were made when each one's targets were put

    def one_by_one() -> Iterator[Example]:
        for item in items:
            made.append(item.key)
            yield item

    class Watched(KeptTargets):
        def put(self, key: int, targets: TeacherTargets) -> None:
            there.append(len(made))
            super().put(key, targets)

    with Kept(10**9, tmp_path) as kept:
        keep = Watched(kept)
        assert trainer.teach(one_by_one(), Recipe(), tokens=64, keep=keep) == []
        together = trainer.teach(items, Recipe(), tokens=64)
        assert all(torch.equal(keep[key].logprobs_N_K, together[key].logprobs_N_K) for key in range(40))
    assert there[0] < 20 and made == list(range(40))


def test_groups_keep_order_and_bound() -> None:
    items = examples(40, prefix=9)
    parts = list(group(items, 64))
    assert [item.key for part in parts for item in part] == list(range(40))
    assert len(parts) > 2
    assert all(len(pack(part)) <= 64 for part in parts)
    own = list(group(items, lambda first: 64 if first.key else 30))
    assert len(pack(own[0])) <= 30 < len(pack(parts[0]))
    assert all(30 < len(pack(part)) <= 64 for part in own[1:-1])
    assert [item.key for part in own for item in part] == list(range(40))
    assert list(group([], 64)) == []
    assert shared_length([(1, 2, 3), (1, 2, 3)]) == 2
    with pytest.raises(ValueError, match="at least one example"):
        pack([])
    with pytest.raises(ValueError, match="at least one example"):
        pack([Example((1,), ())])


def run(trainer: Trainer, recipe: Recipe, checkpoint: Path | None, stop_after: int | None = None) -> dict[str, Tensor]:
    class Killed(Exception):
        pass

    def on_step(step: int, total: int, loss: float) -> None:
        if step == stop_after:
            raise Killed

    items = examples(12, seed=2)
    trainer.attach(recipe)
    targets = trainer.teach(items, recipe)
    try:
        trainer.fit([items[::2], items[1::2]], targets, recipe, checkpoint=checkpoint, on_step=on_step)
    except Killed:
        assert stop_after is not None
    else:
        assert stop_after is None
    return {name: weight.detach().clone() for name, weight in trainer.parameters().items()}


def test_text_has_no_teacher_and_is_learned_by_cross_entropy(tiny_llama: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    text = [dataclasses.replace(item, key=-1) for item in examples(3, seed=4)]
    learned = []
    for objective in ("dcd", "next-token"):
        trainer.attach(Recipe(objective=objective, rank=4, steps=2, echoed=0.0))
        trainer.fit([text], [], Recipe(objective=objective, rank=4, steps=2, echoed=0.0))
        learned.append({name: weight.detach().clone() for name, weight in trainer.parameters().items()})
    assert any(weight.abs().max() > 0 for name, weight in learned[0].items() if "lora_B" in name)
    for name, weight in learned[0].items():
        assert torch.equal(weight, learned[1][name]), name


def test_a_resumed_run_ends_where_an_unbroken_one_does(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = Recipe(rank=4, alpha=8, steps=12, pack_tokens=40, checkpoint_steps=3, cross_entropy=1.0, first_layer=0.25)
    trainer = Trainer(tiny_llama, device="cpu")
    whole = run(trainer, recipe, None)
    run(trainer, recipe, tmp_path, stop_after=8)
    assert (tmp_path / CHECKPOINT).is_file()
    steps: list[int] = []
    trainer.attach(recipe)
    items = examples(12, seed=2)
    targets = trainer.teach(items, recipe)
    lists = [items[::2], items[1::2]]
    told = trainer.fit(lists, targets, recipe, checkpoint=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert steps == list(range(7, 13))
    trainer.attach(recipe)
    unbroken = trainer.fit(lists, targets, recipe)
    assert (told["steps"], told["tokens"], told["loss"]) == (12, unbroken["tokens"], unbroken["loss"])
    for name, weight in trainer.parameters().items():
        assert torch.equal(weight, whole[name]), name
    other = dataclasses.replace(recipe, learning_rate=3e-3)
    steps.clear()
    trainer.attach(other)
    trainer.fit([items], targets, other, checkpoint=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert steps[0] == 1  # a checkpoint of another recipe is not taken up
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    steps.clear()
    trainer.attach(recipe)
    trainer.fit([items], targets, recipe, checkpoint=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert steps[0] == 1


def test_training_teaches_and_leaves_the_base_alone(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_decoder, device="cpu")
    before = {name: weight.clone() for name, weight in trainer.base.state_dict().items()}
    recipe = Recipe(objective="sft", rank=8, alpha=16, steps=150, learning_rate=2e-2)
    items = examples(6, seed=4)
    trainer.attach(recipe)
    assert trainer.score(items) == pytest.approx(trainer.score(items, adapter=False), abs=1e-5)
    trainer.fit([items], [], recipe)  # an objective without a teacher
    after, base = trainer.score(items), trainer.score(items, adapter=False)
    # The random head's rows are short: no hidden state can move a logit by more than about 0.6.
    for together, apart in zip(trainer.compare(items, tokens=60), (base, after), strict=True):
        assert together == pytest.approx(apart, abs=1e-5)
    gains = [new - old for new, old in zip(after, base, strict=True)]
    assert min(gains) > 0.2
    assert sum(gains) / len(gains) > 0.35
    trainer.save(tmp_path / "adapter")
    saved = trainer.score(items)
    trainer.detach()
    assert trainer.base.state_dict().keys() == before.keys()
    for name, weight in trainer.base.state_dict().items():
        assert torch.equal(weight, before[name]), name
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    from peft import PeftModel

    again = PeftModel.from_pretrained(trainer.base, str(tmp_path / "adapter"))
    with torch.no_grad():
        logits_N_V, _ = plain_outputs(again, items[0])
    logprob = torch.log_softmax(logits_N_V, -1).gather(1, torch.tensor(items[0].target)[:, None]).mean()
    assert float(logprob) == pytest.approx(saved[0], abs=1e-4)


def test_a_loss_that_is_no_number_is_an_error_that_says_so(tiny_llama: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    recipe = Recipe(rank=2, alpha=4, steps=2, hidden=0.0)
    items = examples(2)
    trainer.attach(recipe)
    targets = trainer.teach(items, recipe, hidden=False)
    broken: list[TeacherTargets] = [
        dataclasses.replace(part, logprobs_N_K=part.logprobs_N_K * float("nan")) for part in targets
    ]
    with pytest.raises(TrainingError, match="learning_rate"):
        trainer.fit([items], broken, recipe)


def test_every_epoch_takes_every_pack_once() -> None:
    items = examples(30, prefix=4)
    recipe = Recipe(epochs=3, least_steps=1, pack_tokens=48)
    rows = rows_of([items[:15], items[15:]], recipe)
    packs, plan = [row.pack() for row in rows], steps_of(rows, recipe)
    assert len(plan) == 3 * len(packs)
    for epoch in range(3):
        assert sorted(plan[epoch * len(packs) : (epoch + 1) * len(packs)]) == list(range(len(packs)))
    assert sorted(key for row in packs for key in row.keys) == list(range(30))
    assert plan == steps_of(rows_of([items[:15], items[15:]], recipe), recipe)
    often = steps_of(rows, Recipe(epochs=3, least_steps=3 * len(packs) + 1, pack_tokens=48))
    assert len(often) == 3 * len(packs) + 1 and often[:-1] == plan  # a short document is read more often


def test_a_second_round_takes_each_of_its_packs_once() -> None:
    plan = second_plan([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 4, old=3, new=2, seed=0)
    assert plan[:4] == [0, 1, 2, 0]
    assert sorted(plan[4:])[-2:] == [3, 4]
    old = [place for place in plan[4:] if place < 3]
    assert len(old) == 4
    assert set(old) == {0, 1, 2}  # an epoch of the old ones and one more
    assert second_plan([0, 1, 2, 0], 3, old=3, new=9, seed=0)[3] >= 3  # no room for all of them
    assert len(second_plan([0, 1, 2, 0], 2, old=3, new=0, seed=0)) == 4


def test_nothing_to_learn_is_an_error_that_says_so() -> None:
    for recipe in (Recipe(steps=3), Recipe()):
        with pytest.raises(TrainingError, match="nothing to learn"):
            steps_of(rows_of([[], []], recipe), recipe)


def test_only_models_of_attention_alone_are_packed(tiny_decoder: Path) -> None:
    trainer = Trainer(tiny_decoder, device="cpu")
    rows: list[int] = []
    handle = trainer.base.register_forward_pre_hook(
        lambda _, __, options: rows.append(options["input_ids"].numel()), with_kwargs=True
    )
    row = pack(examples(6))
    trainer.attach(Recipe(first_layer=0.5))
    lower_T_D = trainer.lower(row)
    rows.clear()
    with torch.no_grad():
        logits_N_V, _, _ = trainer.forward(row, hidden=False, lower_T_D=lower_T_D)
        whole_N_V, _, _ = trainer.forward(row, hidden=False)
    handle.remove()
    assert torch.equal(logits_N_V, whole_N_V)
    assert len(rows) == (12 if "granitemoehybrid" in str(tiny_decoder) else 2)
