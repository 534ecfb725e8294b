"""The engine that is easy to trust: transformers and peft, one request at a time, the same protocol as vLLM's.

Knows nothing about documents, prompts or modules. Invariant: its greedy text in float32 is what the model says; the
fast engine is tested against it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hybridqa.engine.checks import check_folder, check_prompt, check_rank, check_sampling, check_target
from hybridqa.engine.protocol import Adapter, Completion, Delta, Sampling, completion_of
from hybridqa.engine.vllm_args import context_length
from hybridqa.errors import AdapterError, EngineClosedError, EngineError, HybridQAError, ModelError
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.types import Usage

if TYPE_CHECKING:
    import torch

_KEPT = 4  # adapters in memory


class ReferenceEngine:
    """Serves a base model with at most one adapter at a time; loads nothing before `start`."""

    def __init__(
        self,
        model: ModelFolder,
        *,
        dtype: str = "auto",
        max_model_len: int = 4096,
        max_lora_rank: int = 64,
        seed: int = 0,
    ) -> None:
        self._model_folder = model
        self._dtype = dtype
        self._max_model_len = context_length(model.path, max_model_len)
        self._max_lora_rank = max_lora_rank
        self._seed = seed
        self._lock = threading.Lock()  # one request at a time
        self._model: Any = None
        self._closed = False
        self._adapters: dict[str, None] = {}  # names in peft, least recently used first

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion, in tokens."""
        return self._max_model_len

    @property
    def max_lora_rank(self) -> int:
        """The largest rank of one adapter."""
        return self._max_lora_rank

    async def start(self) -> None:
        """Loads the model; a second call does nothing. Raises `ModelError`."""
        await asyncio.to_thread(self._load)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Adapter | None = None
    ) -> Completion:
        """One whole completion; cancelling the task stops it at the next token."""
        return await completion_of(self.stream(prompt_ids, sampling, adapter))

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Adapter | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The completion in pieces, one per token; closing the iterator stops it at the next token."""
        await self.start()
        check_prompt(prompt_ids, self._max_model_len, self._model.get_input_embeddings().num_embeddings)
        check_sampling(sampling)
        if adapter is not None:
            check_rank(adapter, self._max_lora_rank)
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Delta | HybridQAError] = asyncio.Queue()
        stopped = threading.Event()

        def emit(item: Delta | HybridQAError) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody waits for it
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        thread = threading.Thread(
            target=self._serve, args=(list(prompt_ids), sampling, adapter, stopped, emit), daemon=True
        )
        thread.start()
        try:
            while True:
                item = await inbox.get()
                if isinstance(item, HybridQAError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            stopped.set()

    async def score(
        self, prompt_ids: Sequence[int], target_ids: Sequence[int], adapter: Adapter | None = None, *, scope: str = ""
    ) -> float:
        """The log-probability of `target_ids` behind the prompt, in nats: the sum over its tokens."""
        await self.start()
        check_target(prompt_ids, target_ids, self._max_model_len, self._model.get_input_embeddings().num_embeddings)
        if adapter is not None:
            check_rank(adapter, self._max_lora_rank)
        return await asyncio.to_thread(self._score, list(prompt_ids), list(target_ids), adapter)

    async def evict(self, name: str) -> None:
        """Forgets an adapter: its folder is not read again and may be deleted."""
        await asyncio.to_thread(self._evict, name)

    async def close(self) -> None:
        """Frees the model; later calls raise `EngineClosedError`."""
        self._closed = True
        await asyncio.to_thread(self._free)

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine has been closed; make a new one.")
            if self._model is not None:
                return
            try:
                dtype = "auto" if self._dtype == "auto" else getattr(torch, self._dtype)
                folder = str(self._model_folder.path)
                self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    f"transformers could not load {self._model_folder.name!r} from {folder!r}: {error}. "
                    "Download the model's folder again."
                ) from error
            self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            self._tokenizer = load_tokenizer(self._model_folder.path)

    def _free(self) -> None:
        with self._lock:
            self._model = None
            self._adapters.clear()

    def _serve(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        adapter: Adapter | None,
        stopped: threading.Event,
        emit: Callable[[Delta | HybridQAError], None],
    ) -> None:
        with self._lock:
            try:
                if self._closed:
                    raise EngineClosedError("the engine was closed while it answered; make a new one.")
                self._activate(adapter)
                self._decode(prompt_ids, sampling, stopped, emit)
            except HybridQAError as error:
                emit(error)
            except Exception as error:  # noqa: BLE001  # this request's own failure
                emit(EngineError(f"the reference engine failed: {type(error).__name__}: {error}."))

    def _score(self, prompt_ids: list[int], target_ids: list[int], adapter: Adapter | None) -> float:
        import torch

        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine was closed while it answered; make a new one.")
            self._activate(adapter)
            input_1_T = torch.tensor([prompt_ids + target_ids], device=self._model.device)
            with torch.inference_mode():  # the logits that predict a token stand one place before it
                logits_N_V = self._model(input_ids=input_1_T).logits[0, len(prompt_ids) - 1 : -1].float()
            logprobs_N_V = logits_N_V.log_softmax(-1)
            return float(logprobs_N_V.gather(1, input_1_T[0, len(prompt_ids) :, None]).double().sum())

    def _activate(self, adapter: Adapter | None) -> None:
        from peft import PeftModel

        if adapter is None:
            if self._adapters:
                self._model.disable_adapter_layers()
            return
        name = adapter.name.replace(".", "_")  # peft makes it a module's name
        if name not in self._adapters:
            if len(self._adapters) >= _KEPT:
                self._drop(next(iter(self._adapters)))
            check_folder(adapter, linear_only=False)
            try:
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(str(adapter.path), adapter_name=name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, str(adapter.path), adapter_name=name)
            except Exception as error:
                raise AdapterError(
                    f"adapter {adapter.name!r} could not be loaded from {str(adapter.path)!r}: {error}. "
                    "Expected a PEFT LoRA folder for this base model; compose it again."
                ) from error
            self._model.eval()
        self._adapters.pop(name, None)
        self._adapters[name] = None
        self._model.enable_adapter_layers()
        self._model.set_adapter(name)

    def _evict(self, name: str) -> None:
        with self._lock:
            if name.replace(".", "_") in self._adapters:
                self._drop(name.replace(".", "_"))

    def _drop(self, name: str) -> None:
        del self._adapters[name]
        if self._adapters:
            self._model.set_adapter(next(iter(self._adapters)))
            self._model.delete_adapter(name)
        else:
            self._model = self._model.unload()

    def _decode(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        stopped: threading.Event,
        emit: Callable[[Delta | HybridQAError], None],
    ) -> None:
        import torch

        ends = _end_tokens(self._model_folder, self._tokenizer)
        device = self._model.device
        random = torch.Generator(device=device).manual_seed(self._seed if sampling.seed is None else sampling.seed)
        input_1_T = torch.tensor([prompt_ids], device=device)
        cache: Any = None
        written: list[int] = []
        sent, logprob, reason = "", 0.0, None
        hold = max((len(stop) for stop in sampling.stop), default=1) - 1  # a stop string may end in the next token
        while reason is None:
            if stopped.is_set():
                return
            with torch.inference_mode():
                out = self._model(input_ids=input_1_T, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token, token_logprob = _pick(out.logits[0, -1].float(), sampling, random)
            logprob += token_logprob
            written.append(token)
            if token in ends:
                reason = "stop"
            elif len(written) >= sampling.max_tokens or len(prompt_ids) + len(written) >= self._max_model_len:
                reason = "length"
            text = str(self._tokenizer.decode(written, skip_special_tokens=True))
            cuts = [text.index(stop) for stop in sampling.stop if stop in text]
            if cuts:
                text, reason = text[: min(cuts)], "stop"
            ready = text if reason else text[: max(len(sent), len(text) - hold)]
            input_1_T = torch.tensor([[token]], device=device)
            if reason is None and ready.endswith("\ufffd"):  # half a character
                continue
            usage = Usage(len(prompt_ids), len(written)) if reason else None
            emit(Delta(ready[len(sent) :], reason, usage, logprob))
            sent, logprob = ready, 0.0


def _pick(logits_V: torch.Tensor, sampling: Sampling, random: torch.Generator) -> tuple[int, float]:
    """The next token and its log-probability before temperature and top-p."""
    import torch

    logprobs_V = logits_V.log_softmax(-1)
    if sampling.temperature == 0:
        token = int(logits_V.argmax())
    else:
        probs_V, order_V = (logits_V / sampling.temperature).softmax(-1).sort(descending=True)
        probs_V[probs_V.cumsum(-1) - probs_V >= sampling.top_p] = 0
        token = int(order_V[torch.multinomial(probs_V, 1, generator=random)])
    return token, float(logprobs_V[token])


def _end_tokens(model: ModelFolder, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: the tokenizer's and those of generation_config.json."""
    ends = {tokenizer.eos_token_id} - {None}
    path = model.path / "generation_config.json"
    if path.is_file():
        given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ends |= set(given if isinstance(given, list) else [given]) - {None}
    return ends
