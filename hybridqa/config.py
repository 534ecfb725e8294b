"""Settings: what a user may change, from arguments, HYBRIDQA_* variables and the store's hybridqa.toml, in this order.

Knows nothing about the parts that read them. Invariant: unknown names in hybridqa.toml are refused, never ignored.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from hybridqa.errors import ConfigError

CONFIG_NAME = "hybridqa.toml"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank


class Settings(BaseSettings):
    """Everything that can be set; `Settings.load` reads a store's file as well."""

    model_config = SettingsConfigDict(env_prefix="HYBRIDQA_", extra="forbid", frozen=True)

    store: Path = Path()  # folder that holds hybridqa.toml, indexes/ and modules/
    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")  # which index and module store in it
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("hybridqa"))  # converted models

    model: str = "smollm2-135m"  # hub id, local folder, or the embedded default's alias
    embedder: str = "all-minilm-l6-v2"  # sentence-transformers id or folder, or the embedded default's alias
    engine: Literal["vllm", "remote", "reference"] = "vllm"
    engine_urls: Annotated[list[str], NoDecode] = []  # of the vLLM servers that engine = "remote" asks
    engine_key: SecretStr | None = None  # their --api-key; sent to them, and shown and stored nowhere
    stack_collections: Annotated[list[str], NoDecode] = ["default"]  # that a vLLM server answers stacks of; "*": all
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int = Field(4096, ge=256)
    max_lora_rank: int = 64  # the ranks of one stack sum to at most this
    max_stacks: int = Field(4, ge=1)  # different stacks in one batch
    kv_cache_mb: int | None = Field(None, ge=16)  # None: 512 on a CPU, 4096 on a GPU
    seed: int = Field(0, ge=0)

    passage_tokens: int = Field(200, ge=16)  # in the embedder's tokens
    max_document_mb: float = Field(20.0, gt=0)
    passages: int = Field(4, ge=1)  # passages in a prompt, at most
    passages_with_module: int = Field(2, ge=0)  # where the right module surely answers as well; 0: as many as without
    neighbours: int = Field(0, ge=0)  # passages on each side that come with one in a prompt, where there is room
    rerank: int = Field(0, ge=0)  # so many of the best passages are ranked anew by the base model; 0: none
    reranker: str | None = None  # a sentence-transformers cross-encoder, folder or hub id, in the base model's place
    hops: int = Field(1, ge=1)  # searches for a question, each further one for what was found before it
    history: bool = True  # search for a follow-up question with the one before it
    rewrite: bool = False  # have the base model restate a follow-up question that cannot stand alone
    context_tokens: int = Field(1500, ge=64)  # the sources' share of the prompt
    max_answer_tokens: int = Field(128, ge=1)
    modules: int = Field(1, ge=0)  # modules in a stack, at most
    module_threshold: float = Field(0.35, ge=0, le=1)  # evidence below this plugs nothing in
    passage_threshold: float = Field(0.0, ge=-1, le=1)  # cosine below this is no evidence at all
    abstain_below: float = Field(0.05, ge=0, le=1)  # evidence below this for every document: no answer is tried
    plugins: Annotated[list[str], NoDecode] = []  # ids of modules in every answer's stack, where a collection has them
    extractor: bool = True  # use a collection's extractor where there is one
    stack_cache_mb: int = Field(2048, ge=1)

    requests_per_minute: int = Field(0, ge=0)  # of one key, at most; 0: no limit; `hybridqa keys add` can give another
    requests_at_once: int = Field(0, ge=0)  # of one key, at most; 0: no limit
    queue: int = Field(64, ge=1)  # questions and uploads that a server works on or lets wait; more are sent away
    parse_seconds: float = Field(120.0, gt=0)  # that an uploaded file may take to read
    parse_memory_mb: int = Field(1024, ge=128)  # that reading an uploaded file may take

    objective: Literal["dcd", "prompt-distillation", "next-token", "sft"] = "dcd"  # what a module is trained by
    module_rank: int = Field(16, ge=1)
    module_alpha: int = Field(32, ge=1)
    train_epochs: float = Field(5.0, gt=0)  # passes over what is to be learned; of a short document more
    train_steps: int = Field(0, ge=0)  # when not 0, it counts instead of train_epochs
    learning_rate: float = Field(2e-3, gt=0)
    train_together: int = Field(0, ge=0)  # documents whose modules train in one row; 0: 8 on a GPU, 1 on a CPU
    train_memory_mb: int = Field(4096, ge=1)  # of what the trainer keeps between steps; the rest is kept in files
    generator_url: str | None = None  # an OpenAI-compatible endpoint that writes synthetic data instead of the engine
    generator_model: str | None = None  # its model's name
    generator_key: SecretStr | None = None  # sent to that endpoint, and shown and stored nowhere

    @field_validator("plugins", "engine_urls", "stack_collections", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        """A variable holds text: items with commas between them."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("engine_urls")
    @classmethod
    def _servers(cls, value: list[str]) -> list[str]:
        """Without the /v1 that clients of OpenAI's write, each once."""
        for url in value:
            parsed = urlsplit(url)
            if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.query or parsed.fragment:
                raise ValueError(f"{url!r} is no server's URL, such as 'http://10.0.0.7:8000'")
        return list(dict.fromkeys(url.rstrip("/").removesuffix("/v1").rstrip("/") for url in value))

    @field_validator("max_lora_rank")
    @classmethod
    def _known_rank(cls, value: int) -> int:
        if value not in LORA_RANKS:
            raise ValueError(f"max_lora_rank must be one of {LORA_RANKS}, not {value}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; `load` adds the store's file below both."""
        return (init_settings, env_settings)

    @classmethod
    def load(cls, store: str | Path | None = None, **overrides: Any) -> Settings:
        """Settings of a store: `overrides`, then HYBRIDQA_*, then `store/hybridqa.toml`, then the defaults.

        Raises `ConfigError` when a name is unknown or a value out of range.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        if store is not None:
            given["store"] = Path(store)
        try:
            top = cls(**given)
            path = top.store / CONFIG_NAME
            if not path.is_file():
                return top._consistent()
            from_file = tomllib.loads(path.read_text(encoding="utf-8"))
            from_file.pop("store", None)
            explicit = {name: getattr(top, name) for name in top.model_fields_set}
            return cls(**{**from_file, **explicit})._consistent()
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])!r}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError(
                f"settings are not usable: {problems}. Mend {CONFIG_NAME} or the HYBRIDQA_* variables; "
                "`hybridqa doctor` lists the settings in force."
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f"{str(path)!r} is no valid TOML: {error}. Mend it, then run `hybridqa doctor`."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{str(path)!r} is not in UTF-8: {error}. Save it as UTF-8, then run `hybridqa doctor`."
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be read: {error.strerror}; expected a file that may be read, or none. Check the "
                "permissions of its folder."
            ) from error

    def _consistent(self) -> Self:
        """Itself, when its values go together; not a validator, since `load` makes one without the store's file."""
        if self.module_rank > self.max_lora_rank:
            enough = [rank for rank in LORA_RANKS if rank >= self.module_rank]
            raise ConfigError(
                f"settings are not usable: 'module_rank' is {self.module_rank} and 'max_lora_rank' "
                f"{self.max_lora_rank}; expected a max_lora_rank of at least module_rank, or no module could be "
                f"plugged in. Set {f'max_lora_rank = {enough[0]} or ' if enough else ''}a smaller module_rank in "
                f"{CONFIG_NAME} or the HYBRIDQA_* variables."
            )
        if bool(self.generator_url) != bool(self.generator_model):
            given, missing = "generator_url", "generator_model"
            if self.generator_model:
                given, missing = missing, given
            raise ConfigError(
                f"settings are not usable: {given!r} is {getattr(self, given)!r} and {missing!r} is not set; expected "
                f"both or neither. Set {missing} in {CONFIG_NAME} or the HYBRIDQA_* variables."
            )
        if self.engine == "remote" and not self.engine_urls:
            raise ConfigError(
                "settings are not usable: 'engine' is 'remote' and 'engine_urls' is empty; expected the URL of a vLLM "
                f"server or of several. Set engine_urls in {CONFIG_NAME} or HYBRIDQA_ENGINE_URLS."
            )
        return self

    @property
    def index_dir(self) -> Path:
        """Where the catalog and the dense index live."""
        return self.store / "indexes" / self.name

    @property
    def module_dir(self) -> Path:
        """Where modules, composed stacks and the trainer's checkpoints live."""
        return self.store / "modules" / self.name

    @property
    def catalog_path(self) -> Path:
        """The catalog's SQLite file."""
        return self.index_dir / "catalog.sqlite3"
