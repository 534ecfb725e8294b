"""Settings that cannot be used are refused with the file or the name that is to be mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridqa import HybridQA
from hybridqa.config import CONFIG_NAME, Settings
from hybridqa.errors import ConfigError, StoreError


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"hybridqa\.toml' is not in UTF-8"):
        Settings.load(tmp_path)


def test_a_file_that_cannot_be_read(open_folder: Path) -> None:
    (open_folder / CONFIG_NAME).touch(0o000)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        Settings.load(open_folder)
    open_folder.joinpath("closed").mkdir(0o000)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        Settings.load(open_folder / "closed")


def test_a_module_must_fit_into_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'module_rank' is 65 and 'max_lora_rank' 64;.*max_lora_rank = 128 or a"):
        Settings.load(tmp_path, module_rank=65)
    with pytest.raises(ConfigError, match="Set a smaller module_rank"):
        Settings.load(tmp_path, module_rank=513)
    (tmp_path / CONFIG_NAME).write_text("max_lora_rank = 128\n")
    monkeypatch.setenv("HYBRIDQA_MODULE_RANK", "128")  # the two go together only with the store's file
    assert Settings.load(tmp_path).module_rank == 128


def test_an_objective_that_is_none(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text('objective = "distil"\n')
    with pytest.raises(
        ConfigError, match=r"'objective': Input should be 'dcd', 'prompt-distillation', 'next-token' or"
    ):
        Settings.load(tmp_path)
    assert Settings.load(tmp_path, objective="sft").objective == "sft"


def test_a_store_where_none_can_be(open_folder: Path) -> None:
    (open_folder / "file").touch()
    (open_folder / "fixed").mkdir(0o555)
    for path, why in (("file", "Not a directory"), ("file/below", "Not a directory"), ("fixed/x", "Permission denied")):
        with pytest.raises(StoreError, match=f"{why}; expected a folder"):
            HybridQA.open(open_folder / path, create=True)
    HybridQA.open(open_folder / "store", create=True).close()
    (open_folder / "store" / "indexes").chmod(0o600)
    with pytest.raises(StoreError, match="Permission denied; expected a folder"):
        HybridQA.open(open_folder / "store")


def test_plugins_are_a_list_in_a_file_and_text_with_commas_in_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / CONFIG_NAME).write_text('plugins = ["style", "shots"]\nextractor = false\n')
    settings = Settings.load(tmp_path)
    assert (settings.plugins, settings.extractor) == (["style", "shots"], False)
    for text, expected in (("a, b,", ["a", "b"]), ("house-style", ["house-style"]), ("", [])):
        monkeypatch.setenv("HYBRIDQA_PLUGINS", text)
        assert Settings.load(tmp_path).plugins == expected
    with pytest.raises(ConfigError, match="'plugins'"):
        Settings.load(tmp_path, plugins=7)


def test_servers_are_urls_each_once_and_a_remote_engine_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="'engine_urls' is empty"):
        Settings.load(tmp_path, engine="remote")
    monkeypatch.setenv("HYBRIDQA_ENGINE_URLS", "http://10.0.0.7:8000/v1/, https://gpu/vllm, http://10.0.0.7:8000")
    monkeypatch.setenv("HYBRIDQA_ENGINE_KEY", "secret-key")
    settings = Settings.load(tmp_path, engine="remote")
    assert settings.engine_urls == ["http://10.0.0.7:8000", "https://gpu/vllm"]
    assert "secret-key" not in f"{settings!r}{settings.model_dump(mode='json')}"
    for wrong in ("10.0.0.7:8000", "ftp://host", "http://", "http://host?x=1"):
        with pytest.raises(ConfigError, match="is no server's URL"):
            Settings.load(tmp_path, engine_urls=[wrong])


def test_a_server_answers_for_one_collection_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.load(tmp_path).stack_collections == ["default"]
    monkeypatch.setenv("HYBRIDQA_STACK_COLLECTIONS", "team a,team b")
    assert Settings.load(tmp_path).stack_collections == ["team a", "team b"]
