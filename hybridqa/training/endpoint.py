"""A model behind an OpenAI-compatible endpoint as the writer of synthetic data.

Knows nothing about documents. Invariants: the key is sent to the endpoint and nowhere else: it is in no message, no
identity and no file; at most `PARALLEL` requests are under way at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hybridqa.config import Settings
from hybridqa.engine.protocol import Completion
from hybridqa.errors import ConfigError, EngineError, HybridQAError
from hybridqa.training.generator import NO_ROOM, Prompt
from hybridqa.types import Message, Usage

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam

PARALLEL = 8
RETRIES = 3  # of one request, by the client, with growing pauses
TIMEOUT_S = 120.0


class EndpointGenerator:
    """Writes by way of `generator_url` and `generator_model`."""

    strong = True

    def __init__(self, url: str, model: str, key: str = "", *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        self._model = model
        self._key = key
        self._client = _client(url, key, timeout_s)
        weakref.finalize(self, self._client.close)  # nobody else closes its connections
        self._answered = False  # whether it has ever written anything
        self.identity = f"{model} at {url}"

    @classmethod
    def from_settings(cls, settings: Settings) -> EndpointGenerator:
        """The endpoint that the settings name."""
        key = settings.generator_key.get_secret_value() if settings.generator_key else ""
        return cls(settings.generator_url or "", settings.generator_model or "", key)

    def write(self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0) -> list[Completion]:
        """See `Generator`; the first failure ends the rest.

        A prompt that the endpoint refuses by itself, such as one that is too long for it, is "abort"ed, unless it has
        refused every prompt so far: then what is asked for cannot be had.
        """
        pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="hybridqa-generator")
        try:
            work = [pool.submit(self._one, prompt, max_tokens, temperature) for prompt in prompts]
            written = [future.result() for future in work]
        finally:
            pool.shutdown(cancel_futures=True)
        refused = [each for each in written if isinstance(each, HybridQAError)]
        self._answered |= len(refused) < len(written)
        if refused and not self._answered:
            raise refused[0]
        return [NO_ROOM if isinstance(each, HybridQAError) else each for each in written]

    def _one(self, prompt: Prompt, max_tokens: int, temperature: float) -> Completion | HybridQAError:
        """What the endpoint writes, or why it refuses this prompt; raises what is wrong with all of them."""
        import openai

        messages = [_message(turn) for turn in prompt.messages or (Message("user", prompt.text),)]
        try:
            done = self._client.chat.completions.create(
                model=self._model, messages=messages, max_tokens=max_tokens, temperature=temperature
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return self._translated(error)
        except openai.OpenAIError as error:
            raise self._translated(error) from None  # a chained one could show the request's headers
        if not done.choices:
            raise EngineError(f"{self._model!r} at {self._url!r} answered without a choice; expected one.")
        choice = done.choices[0]
        usage = Usage(done.usage.prompt_tokens, done.usage.completion_tokens) if done.usage else Usage()
        return Completion(choice.message.content or "", choice.finish_reason or "length", usage)

    def _translated(self, error: Exception) -> HybridQAError:
        """The error in this project's terms, without the key."""
        import openai

        where = f"the generator at {self._url!r}"
        said = str(error).replace(self._key, "…") if self._key else str(error)
        if isinstance(error, openai.APIConnectionError):
            late = "did not answer in time" if isinstance(error, openai.APITimeoutError) else "cannot be reached"
            return EngineError(
                f"{where} {late}; expected an OpenAI-compatible endpoint. Start it or mend `generator_url`, then run "
                "`hybridqa refresh` again."
            )
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            # What a server says here may quote a part of the key.
            return ConfigError(
                f"{where} refuses the key; expected a valid one in `generator_key`. Set it and try again."
            )
        if isinstance(error, openai.NotFoundError):
            return ConfigError(
                f"{where} knows no model {self._model!r}, or is no chat endpoint: {said}. Set `generator_model` to one "
                "that it lists under /models, and `generator_url` to the address that ends before /chat/completions."
            )
        return EngineError(f"{where} failed with {self._model!r}: {said}. Run `hybridqa refresh` again.")


def _client(url: str, key: str, timeout_s: float) -> OpenAI:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ConfigError(
            f"`generator_url` is {url!r} and the openai client is not installed; expected it beside hybridqa. Run "
            "`pip install 'hybridqa[generator]'`, or unset `generator_url`."
        ) from error
    # A key is always given: without one, the client would send the environment's OPENAI_API_KEY to this address.
    return OpenAI(base_url=url, api_key=key or "none", max_retries=RETRIES, timeout=timeout_s)


def _message(turn: Message) -> ChatCompletionMessageParam:
    if turn.role == "system":
        return {"role": "system", "content": turn.content}
    if turn.role == "assistant":
        return {"role": "assistant", "content": turn.content}
    return {"role": "user", "content": turn.content}
