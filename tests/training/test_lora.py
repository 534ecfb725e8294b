"""The trainer's LoRA: what PEFT's does, alone and beside others; it leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridqa.errors import BaseModelMismatchError, TrainingError
from hybridqa.modules.stacking import compose
from hybridqa.training.packing import Example
from hybridqa.training.recipe import Recipe
from hybridqa.training.trainer import Trainer

IDS = torch.tensor([[3, 14, 15, 9, 26, 5]])


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def trained(trainer: Trainer, folder: Path, seed: int, **recipe: float) -> Tensor:
    """Saves an adapter with random weights and says what the model answers with it."""
    trainer.attach(Recipe(rank=4, alpha=8, seed=seed, **recipe))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in trainer.parameters().values():
            weight.normal_(std=0.1)
    trainer.save(folder, "tiny")
    return logits(trainer.base)


def test_saved_adapters_do_in_peft_what_they_did_in_the_trainer(tiny_decoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trainer = Trainer(tiny_decoder, device="cpu")
    plain = logits(trainer.base)
    for first_layer in (0.0, 0.5):
        folder = tmp_path / str(first_layer)
        learned = trained(trainer, folder, 1, first_layer=first_layer)
        trainer.detach()
        assert torch.equal(logits(trainer.base), plain)
        again = PeftModel.from_pretrained(trainer.base, str(folder))
        assert torch.allclose(logits(again), learned, atol=1e-5)
        assert not torch.allclose(learned, plain, atol=1e-3)
        again.unload()


def test_companions_add_what_their_stack_adds(tiny_decoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trainer = Trainer(tiny_decoder, device="cpu")
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for seed, folder in enumerate(folders):
        trained(trainer, folder, seed, first_layer=0.5 if seed else 0.0)
    companion = trainer.companion(folders[:2])  # the third stays attached
    with trainer.beside(companion):
        together = logits(trainer.base)
    with trainer.beside(companion, adapter=False):
        beside = logits(trainer.base)
    trainer.detach()
    for parts, expected in ((folders, together), (folders[:2], beside)):
        stack = tmp_path / f"stack-{len(parts)}"
        compose([(part, 1.0) for part in parts], stack, max_rank=64, dtype="float32")
        composed = PeftModel.from_pretrained(trainer.base, str(stack))
        assert torch.allclose(logits(composed), expected, atol=1e-4)
        composed.unload()


def test_learned_weights_are_served_by_the_composer(tiny_llama: Path, tmp_path: Path) -> None:
    """The adapter's own weights are folded into what is saved; a companion's go to the composer."""
    from peft import PeftModel

    trainer = Trainer(tiny_llama, device="cpu")
    trained(trainer, tmp_path / "module", 1, first_layer=0.5)
    trainer.attach(Recipe(rank=4, alpha=8), learn_weights=True)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in trainer.parameters().items():
            weight.normal_(std=0.1, mean=1.0 if name.endswith("_weight") else 0.0)
    companion = trainer.companion([tmp_path / "module"])
    weights = trainer.maps.companion_weights() if trainer.maps else {}
    assert len(weights) == 28
    assert len(set(weights.values())) > 20
    trainer.save(tmp_path / "extractor", "tiny")
    with trainer.beside(companion):
        learned = logits(trainer.base)
    trainer.detach()
    mine = {name: weights[name] for name in companion.factors}
    compose([(tmp_path / "module", mine), (tmp_path / "extractor", 1.0)], tmp_path / "s", max_rank=64, dtype="float32")
    served = PeftModel.from_pretrained(trainer.base, str(tmp_path / "s"))
    assert torch.allclose(logits(served), learned, atol=1e-4)


def test_gradients_reach_the_adapter_and_its_weights_alone(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    trained(trainer, tmp_path / "module", 1, first_layer=0.0)
    recipe = Recipe(rank=4, alpha=8, steps=3, learning_rate=1e-2, objective="sft", first_layer=0.5)
    trainer.attach(recipe, learn_weights=True)
    companion = trainer.companion([tmp_path / "module"])
    before = {name: (a.clone(), b.clone()) for name, (a, b) in companion.factors.items()}
    items = [Example((3, 4, 5), (6, 7), 0), Example((3, 4, 8), (9,), 1)]
    assert not trainer.freezes(companion)  # it changes layers below the adapter's
    assert trainer.freezes(None)
    trainer.fit([items], [], recipe, companions=[companion])
    assert all(weight != 1.0 for weight in trainer.maps.companion_weights().values()) if trainer.maps else False
    for name, (a_R_I, b_O_R) in companion.factors.items():
        assert torch.equal(a_R_I, before[name][0])
        assert torch.equal(b_O_R, before[name][1])


def test_distractors_change_what_is_learned_and_are_drawn_by_the_step(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    trained(trainer, tmp_path / "module", 1, first_layer=0.5)
    items = [Example((3, 4, 5), (6, 7), 0), Example((3, 4, 8), (9,), 1)]
    found = []
    for distracted in (0.0, 0.5, 0.5):
        recipe = Recipe(rank=4, alpha=8, steps=8, learning_rate=1e-2, objective="sft", distracted=distracted)
        trainer.attach(recipe)
        trainer.fit([items], [], recipe, distractors=[trainer.companion([tmp_path / "module"])])
        found.append(torch.cat([weight.detach().flatten() for weight in trainer.parameters().values()]))
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


def test_an_adapter_without_others_stands_beside_itself(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    trained(trainer, tmp_path / "module", 1, first_layer=0.5)
    assert trainer.maps is not None
    once = logits(trainer.base)
    with trainer.beside(trainer.maps.echo(1.0), share=0.5):
        assert torch.allclose(logits(trainer.base), once, atol=1e-4)  # two halves of the same
    found = []
    for companion in (trainer.maps.echo(1.0), trainer.companion([tmp_path / "module"]), trainer.maps.echo(0.0)):
        with trainer.beside(companion):
            found.append(logits(trainer.base))
    assert torch.allclose(found[0], found[1], atol=1e-4)  # the same, as it was saved
    assert torch.equal(found[2], once) and not torch.allclose(found[0], once, atol=1e-2)
    items = [Example((3, 4, 5), (6, 7), 0), Example((3, 4, 8), (9,), 1)]
    learned = []
    for echoed in (0.0, 0.5, 0.5):
        recipe = Recipe(rank=4, alpha=8, steps=8, learning_rate=1e-2, objective="sft", echoed=echoed)
        trainer.attach(recipe)
        trainer.fit([items], [], recipe)
        learned.append(torch.cat([weight.detach().flatten() for weight in trainer.parameters().values()]))
    assert torch.equal(learned[1], learned[2])
    assert not torch.equal(learned[0], learned[1])


def test_a_companion_of_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    other = Trainer(tmp_path / "wide", device="cpu")
    trained(other, tmp_path / "module", 1)
    trainer = Trainer(tiny_llama, device="cpu")
    with pytest.raises(TrainingError, match="attach"):
        trainer.companion([tmp_path / "module"])
    with pytest.raises(TrainingError, match="attach"):
        trainer.save(tmp_path / "nothing")
    trainer.attach(Recipe())
    with pytest.raises(BaseModelMismatchError, match="this base model"):
        trainer.companion([tmp_path / "module"])


def test_bfloat16_learns_in_float32(tiny_llama: Path) -> None:
    """Steps far below bfloat16's resolution add up in the weights."""
    trainer = Trainer(tiny_llama, device="cpu", dtype="bfloat16")
    assert next(trainer.base.parameters()).dtype == torch.bfloat16
    recipe = Recipe(rank=4, alpha=8, steps=30, learning_rate=1e-6, objective="sft")
    trainer.attach(recipe)
    before = {name: weight.detach().clone() for name, weight in trainer.parameters().items()}
    items = [Example((3, 4, 5), (6, 7), 0), Example((3, 4, 8), (9,), 1)]
    trainer.fit([items], [], recipe)
    assert all(weight.dtype == torch.float32 for weight in trainer.parameters().values())
    moved = [float((weight - before[name]).detach().abs().max()) for name, weight in trainer.parameters().items()]
    assert max(moved) < 1e-3
    assert min(moved) > 0
