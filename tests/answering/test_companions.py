"""Plug-ins and extractors in answers: which stacks have them, with which weights, and what happens when one is hurt."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridqa import Answer, HybridQA, Mode
from hybridqa.answering.companions import Companions
from hybridqa.engine.protocol import Sampling
from hybridqa.errors import InputError, ModuleNotFoundInStoreError, QuestionError, RankLimitError
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest, write_manifest
from hybridqa.types import Module, Route

Make = Callable[..., Path]
Open = Callable[..., HybridQA]
KETTLE = "Maren Holt designed the Lumen kettle in 2031. The Lumen kettle costs 89 euros."
QUESTION = "Who designed the Lumen kettle?"
WEIGHTS = {
    "model.layers.0.self_attn.q_proj": 0.25,
    "model.layers.0.mlp.down_proj": 0.0,
    "model.layers.1.mlp.up_proj": -1.5,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder, make_adapter: Make) -> Path:
    """A store with a document and its module (rank 8), an extractor (8) and two plug-ins (4 each)."""
    folder = tmp_path_factory.mktemp("template")
    adapters = [
        make_adapter(folder / name, tiny_model, rank=rank, seed=seed, strength=0.5)
        for seed, (name, rank) in enumerate([("module", 8), ("extractor", 8), ("style", 4), ("shots", 4)])
    ]
    with HybridQA.open(folder / "store", create=True, model=str(tiny_model.path), engine="reference") as qa:
        qa.add_text("kettle", KETTLE)
        shared = {"collection": "default", "base_model": "tiny", "base_model_hash": qa.model.hash, "alpha": 16}
        shared |= {"rank": 8, "targets": ["q_proj"]}
        documents = {"kettle": qa.documents()[0].content_hash}
        module = Manifest(**{**shared, "module_id": qa.module_id("kettle"), "documents": documents})
        qa.registry.publish(adapters[0], module, True)
        extractor = Manifest(**{**shared, "module_id": "reader", "kind": "extractor", "module_weights": WEIGHTS})
        write_manifest(adapters[1], extractor)
        qa.import_module(adapters[1])
        qa.import_module(adapters[2], kind="instructions")
        qa.import_module(adapters[3], kind="examples")
    return folder / "store"


@pytest.fixture
def open_store(tmp_path: Path, template: Path, tiny_model: ModelFolder) -> Iterator[Open]:
    """Opens the test's own copy of the store, as often as asked."""
    shutil.copytree(template, tmp_path / "store")
    opened: list[HybridQA] = []

    def make(**changed: Any) -> HybridQA:
        given = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32", "max_model_len": 512}
        opened.append(HybridQA.open(tmp_path / "store", **{**given, "max_answer_tokens": 6, **changed}))
        return opened[-1]

    yield make
    for qa in opened:
        qa.close()


def said(answer: Answer | Route) -> tuple[list[str], list[str], str | None]:
    """Kinds of modules in an answer's stack: documents', plug-ins, extractor."""
    extractor = None if answer.extractor is None else answer.extractor.module.module_id
    modules = [next(iter(choice.module.documents)) for choice in answer.modules]
    return modules, [choice.module.module_id for choice in answer.plugins], extractor


def hurt(module: Module) -> None:
    path = module.path / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


def find(qa: HybridQA, module_id: str) -> Module:
    return qa.catalog.get_module("default", module_id)


def test_each_mode_has_what_it_says(open_store: Open) -> None:
    qa = open_store()
    got = {mode: said(qa.ask(QUESTION, mode=mode, plugins=["style"])) for mode in Mode}
    assert got == {
        Mode.HYBRID: (["kettle"], ["style"], "reader"),
        Mode.RETRIEVAL: ([], ["style"], "reader"),
        Mode.MODULES: (["kettle"], ["style"], "reader"),
        Mode.CLOSED: ([], ["style"], None),
    }
    answer = qa.ask(QUESTION)
    assert said(answer) == (["kettle"], [], "reader")
    assert answer.modules[0].weight == WEIGHTS and answer.extractor is not None and answer.extractor.weight == 1.0
    assert "extractor 'reader@1'" in answer.route_reason
    alone = qa.ask(QUESTION, extractor=False)
    assert said(alone) == (["kettle"], [], None) and alone.modules[0].weight == 1.0
    closed = [qa.ask(QUESTION, mode="closed", plugins=plugins) for plugins in ([], ["style"], ["style", "shots"])]
    assert len({(answer.text, answer.confidence) for answer in closed}) == 3  # plug-ins do what they say
    assert "plug-in 'style@1'" in closed[1].route_reason
    streamed = list(qa.stream(QUESTION, mode="closed", plugins=["shots", "style", "shots"]))[-1]
    assert isinstance(streamed, Answer) and said(streamed) == ([], ["shots", "style"], None)
    assert streamed.text == closed[2].text  # in whatever order they are asked for


def test_beside_an_extractor_several_modules_share_its_weights(open_store: Open) -> None:
    choice = open_store().ask(QUESTION, extractor=False).modules[0]
    joined = Companions(module_weights=WEIGHTS).join(Route(Mode.HYBRID, (), (choice,) * 4))
    assert [found.weight for found in joined.modules] == [{name: value / 2 for name, value in WEIGHTS.items()}] * 4
    for without in (Companions(), Companions(module_weights={})):  # none, and one that was trained without modules
        assert without.join(joined).modules == joined.modules


def test_nothing_found_is_still_an_abstention(open_store: Open) -> None:
    qa = open_store()
    qa.remove("kettle")
    answer = qa.ask(QUESTION, plugins=["style"])
    assert answer.abstained and answer.usage.total_tokens == 0
    assert said(answer) == ([], [], None)


def test_settings_say_it_for_every_question(open_store: Open) -> None:
    qa = open_store(plugins=["shots", "only-elsewhere"], extractor=False)
    assert said(qa.ask(QUESTION)) == (["kettle"], ["shots"], None)
    assert said(qa.ask(QUESTION, mode="closed")) == ([], ["shots"], None)
    assert said(qa.ask(QUESTION, plugins=["style"], extractor=True)) == (["kettle"], ["style"], "reader")
    assert said(qa.ask(QUESTION, plugins=[])) == (["kettle"], [], None)
    qa.add_text("bridge", "Anna Voss built the Tarn bridge.", collection="works")
    assert said(qa.ask("Who built the Tarn bridge?", collection="works", extractor=True)) == ([], [], None)


def test_a_plugin_that_is_not_there_is_an_error(open_store: Open) -> None:
    qa = open_store()
    qa.add_text("bridge", "Anna Voss built the Tarn bridge.", collection="works")
    for ask in (qa.ask, qa.stream, lambda question, **options: asyncio.run(qa.aask(question, **options))):
        with pytest.raises(ModuleNotFoundInStoreError, match=r"'nothing'.*hybridqa modules"):
            list(ask(QUESTION, plugins=["style", "nothing"]))  # type: ignore[operator]
    with pytest.raises(ModuleNotFoundInStoreError, match="'works'"):
        qa.ask("Who built the Tarn bridge?", plugins=["style"], collection="works")  # another collection's
    for module_id in ("reader", qa.module_id("kettle")):
        with pytest.raises(InputError, match="no plug-in"):
            qa.ask(QUESTION, plugins=[module_id])
    misused: Any = "style"
    with pytest.raises(QuestionError, match="list of ids"):
        qa.ask(QUESTION, plugins=misused)
    qa.catalog.set_current("default", "style", None)
    with pytest.raises(ModuleNotFoundInStoreError, match=r"'style'.*current"):
        qa.ask(QUESTION, plugins=["style"])


def test_documents_modules_make_room_first(open_store: Open) -> None:
    cases = [
        (32, ["style", "shots"], (["kettle"], ["style", "shots"], "reader")),
        (16, ["style", "shots"], ([], ["style", "shots"], "reader")),
        (8, ["style", "shots"], ([], ["style", "shots"], None)),
        (8, [], ([], [], "reader")),
        (16, [], (["kettle"], [], "reader")),
    ]
    for max_rank, plugins, expected in cases:
        qa = open_store(max_lora_rank=max_rank, module_rank=8)
        plan = qa.answerer_ready().plan(QUESTION, {"plugins": plugins})
        assert said(plan.route) == expected and plan.adapter is not None and plan.adapter.rank <= max_rank
        assert ("left out" in plan.route.reason) == (expected[2] is None)
        assert ("that plug-ins and extractor leave" in plan.route.reason) == (not expected[0])


def test_plugins_that_do_not_fit_are_an_error(open_store: Open) -> None:
    qa = open_store(max_lora_rank=1, module_rank=1)
    with pytest.raises(RankLimitError, match=r"'style@1' of rank 4.*at most 1.*max_lora_rank"):
        qa.ask(QUESTION, plugins=["style"])
    assert said(qa.ask(QUESTION)) == ([], [], None)


def test_a_hurt_extractor_is_left_out_and_modules_weigh_as_without_it(open_store: Open) -> None:
    qa = open_store()
    without = qa.ask(QUESTION, extractor=False)
    hurt(find(qa, "reader"))
    answer = qa.ask(QUESTION)
    assert said(answer) == (["kettle"], [], None) and answer.modules[0].weight == 1.0
    assert answer.text == without.text and "extractor 'reader@1' left out" in answer.route_reason
    hurt(find(qa, "style"))
    answer = qa.ask(QUESTION, plugins=["style", "shots"])
    assert said(answer) == (["kettle"], ["shots"], None)
    assert "plug-in 'style@1' left out" in answer.route_reason
    hurt(find(qa, qa.module_id("kettle")))
    answer = qa.ask(QUESTION, plugins=["shots"])
    assert said(answer) == ([], ["shots"], None) and answer.passages


def test_what_is_left_of_a_stack_counts_whole(
    open_store: Open, tmp_path: Path, tiny_model: ModelFolder, make_adapter: Make
) -> None:
    qa = open_store(modules=2, module_threshold=0.0, passage_threshold=0.0, extractor=False)
    qa.add_text("jug", "Maren Holt designed the Lumen jug, too.")
    jug = Manifest(
        module_id=qa.module_id("jug"),
        collection="default",
        documents={"jug": qa.catalog.get_document("default", "jug").content_hash},
        base_model="tiny",
        base_model_hash=qa.model.hash,
        rank=4,
        alpha=16,
        targets=["q_proj"],
    )
    qa.registry.publish(make_adapter(tmp_path / "jug", tiny_model, rank=4, seed=7), jug, True)
    weights = [choice.weight for choice in qa.ask(QUESTION).modules]
    assert len(weights) == 2 and all(isinstance(weight, float) and weight < 1.0 for weight in weights)
    hurt(find(qa, qa.module_id("kettle")))
    (left,) = qa.ask(QUESTION).modules
    assert list(left.module.documents) == ["jug"] and left.weight == 1.0


def test_what_the_engine_refuses_is_left_out_whole(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    qa = open_store()
    qa.warm_up()
    monkeypatch.setattr(qa._engine, "_max_lora_rank", 4)  # a real refusal, by the engine's own check
    answer = qa.ask(QUESTION, plugins=["style"])
    assert said(answer) == ([], [], None) and "left out" in answer.route_reason and answer.passages


def test_a_removed_plugin_is_gone_from_disk_and_from_later_stacks(open_store: Open) -> None:
    qa = open_store()
    qa.ask(QUESTION, plugins=["style"])
    stacks = qa.settings.module_dir / "stacks"
    assert any("style@1" in path.read_text() for path in stacks.glob("stack-*/stack.json"))
    qa.remove_module("style")
    assert not any("style@1" in path.read_text() for path in stacks.glob("stack-*/stack.json"))
    with pytest.raises(ModuleNotFoundInStoreError):
        qa.ask(QUESTION, plugins=["style"])
    qa.remove_module("reader")
    answer = qa.ask(QUESTION)
    assert said(answer) == (["kettle"], [], None) and answer.modules[0].weight == 1.0
    assert qa.catalog.list_garbage() == [] and qa.catalog.check() == []


def test_a_stack_with_extractor_is_what_peft_makes_of_its_parts(open_store: Open, tiny_model: ModelFolder) -> None:
    """The same logits, and from the engine the same text, as both adapters active in peft with the weights by hand."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    qa = open_store()
    plan = qa.answerer_ready().plan(QUESTION, {})
    assert plan.prompt is not None and plan.adapter is not None and plan.adapter.rank == 16
    ids = torch.tensor([plan.prompt.token_ids])

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(str(tiny_model.path), dtype=torch.float32)

    by_hand = PeftModel.from_pretrained(load(), str(plan.route.modules[0].module.path), adapter_name="module")
    assert plan.route.extractor is not None
    by_hand.load_adapter(str(plan.route.extractor.module.path), adapter_name="extractor")
    by_hand.base_model.set_adapter(["module", "extractor"])
    weighted = set()
    for name, layer in by_hand.base_model.model.named_modules():
        if name in WEIGHTS:
            layer.scaling["module"] *= WEIGHTS[name]
            weighted.add(name)
    assert weighted == set(WEIGHTS)
    stacked = PeftModel.from_pretrained(load(), str(plan.adapter.path))
    with torch.inference_mode():
        expected_T_V = by_hand.eval()(input_ids=ids).logits[0]
        made_T_V = stacked.eval()(input_ids=ids).logits[0]
        plain_T_V = load().eval()(input_ids=ids).logits[0]
        written = by_hand.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
    assert float((expected_T_V - plain_T_V).abs().max()) > 0.1
    assert float((made_T_V - expected_T_V).abs().max()) < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model.path))
    text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    async def served() -> str:
        engine = await qa.engine_ready()
        return (await engine.generate(plan.prompt.token_ids, Sampling(max_tokens=6), plan.adapter)).text

    assert qa._loop.run(served()) == text


def test_beside_a_module_fewer_passages_are_enough(open_store: Open) -> None:
    qa = open_store(passages_with_module=1, passage_tokens=16)
    qa.add_text("jug", "The Lumen jug was designed by Ida Brook. It holds two litres. It is blue. It costs 9 euros.")
    both = qa.ask(QUESTION)
    assert len(both.passages) == 1 and both.modules and "1 of the passages, beside a module" in both.route_reason
    assert len(qa.ask(QUESTION, k=3).passages) > 1  # as asked for
    assert len(qa.ask(QUESTION, mode="retrieval").passages) > 1  # no module
    assert len(qa.ask(QUESTION, hops=2).passages) > 1  # what it takes may stand in several documents
    hurt(next(one for one in qa.modules() if one.documents))
    alone = qa.ask(QUESTION)
    assert not alone.modules and len(alone.passages) > 1
