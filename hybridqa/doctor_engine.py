"""Looks at the vLLM servers that `engine = "remote"` asks: can they be reached, and do they serve what is needed.

Knows nothing about printing or stores. Invariant: it asks servers what they are and has none of them generate.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hybridqa.config import Settings
from hybridqa.errors import ConfigError, EngineError, HybridQAError, ModelError
from hybridqa.models import ModelFolder, resolve_model

if TYPE_CHECKING:
    from hybridqa.doctor import Report
    from hybridqa.engine.remote_server import ServerCard

SUBJECT = "engine"
START = (
    "python -m vllm.entrypoints.openai.api_server --enable-lora --max-lora-rank N, with HYBRIDQA_STORE and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1: see README"
)


def check_remote(report: Report, settings: Settings, model_hash: str | None) -> None:
    """One finding a server. Without the base model here (`model_hash` is None) it cannot be compared."""
    try:
        import openai  # noqa: F401
    except ImportError:
        report.add("problem", SUBJECT, "`engine` is 'remote', which needs openai", "pip install 'hybridqa[remote]'")
        return
    model = None if model_hash is None else resolve_model(settings.model, settings.cache_dir)
    looked = asyncio.run(_look(settings, model))
    for url, found in zip(settings.engine_urls, looked, strict=True):
        if isinstance(found, HybridQAError):
            kind = "another server" if isinstance(found, ModelError | ConfigError) else "it"
            report.add("problem", SUBJECT, str(found), f"start {kind} with {START}; or change engine_urls")
        elif not found.stacks:
            report.add("note", SUBJECT, f"{url} serves {found.root}, but no stacks: it answers without modules", START)
        else:
            report.add(
                "ok",
                SUBJECT,
                f"{url} serves {found.root} ({(found.base_hash or '')[:12]}), {found.max_model_len} tokens, adapters "
                f"up to rank {found.max_lora_rank}",
            )
    report.facts[SUBJECT] = [
        {"url": url, "problem": str(found)}
        if isinstance(found, HybridQAError)
        else {
            "url": url,
            "model": found.root,
            "hash": found.base_hash,
            "max_model_len": found.max_model_len,
            "max_lora_rank": found.max_lora_rank,
            "stacks": found.stacks,
        }
        for url, found in zip(settings.engine_urls, looked, strict=True)
    ]


async def _look(settings: Settings, model: ModelFolder | None) -> list[ServerCard | HybridQAError]:
    from hybridqa.engine.remote_server import RemoteServer, fit
    from hybridqa.engine.vllm_args import context_length

    key = settings.engine_key.get_secret_value() if settings.engine_key else ""

    async def one(url: str) -> ServerCard | HybridQAError:
        server = RemoteServer(url, key)
        try:
            if model is None:
                return await server.look()
            length = context_length(model.path, settings.max_model_len)
            return await fit(server, model, length, settings.max_lora_rank)
        except (EngineError, ModelError, ConfigError) as error:
            return error
        finally:
            await server.close()

    return list(await asyncio.gather(*(one(url) for url in settings.engine_urls)))
