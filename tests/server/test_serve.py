"""`hybridqa serve` as a process of its own: it says where it listens, answers, and ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import AuthenticationError, OpenAI
from typer.testing import CliRunner

from hybridqa import HybridQA
from hybridqa.cli import app
from hybridqa.models import ModelFolder


@pytest.fixture
def environment(tmp_path: Path, tiny_model: ModelFolder) -> dict[str, str]:
    settings = {"store": tmp_path / "store", "model": tiny_model.path, "engine": "reference", "max_answer_tokens": 4}
    with HybridQA.open(tmp_path / "store", create=True, model=str(tiny_model.path), engine="reference") as qa:
        qa.add_text("kettle", "The Lumen kettle was designed by Maren Holt.")
    return {**os.environ, **{f"HYBRIDQA_{name.upper()}": str(value) for name, value in settings.items()}}


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_stopped(environment: dict[str, str], told: signal.Signals) -> None:
    command = [sys.executable, "-m", "hybridqa", "serve", "--port", "0"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        said = running.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", said)
        assert found, said
        with OpenAI(base_url=found.group(), api_key="none", max_retries=0, timeout=120) as client:
            asked = client.chat.completions.create(
                model="hybridqa", messages=[{"role": "user", "content": "Who designed the Lumen kettle?"}]
            )
            assert asked.usage is not None and asked.usage.completion_tokens == 4
        began = time.monotonic()
        running.send_signal(told)
        running.wait(timeout=60)
        assert time.monotonic() - began < 30
    finally:
        running.kill()
        out, errors = running.communicate()
    assert running.returncode == (0 if told is signal.SIGINT else -signal.SIGTERM)
    assert out == "" and "Traceback" not in errors


def test_a_program_reads_where_it_listens(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "hybridqa", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        told = json.loads(running.stdout.readline())
        host, _, port = told["url"].removeprefix("http://").removesuffix("/v1").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10):
            pass
        running.kill()


def test_without_keys_it_listens_at_this_machine_alone_and_names_a_port_in_use(environment: dict[str, str]) -> None:
    runner = CliRunner(env=environment)
    done = runner.invoke(app, ["serve", "--host", "0.0.0.0"])
    assert done.exit_code == 2 and "'0.0.0.0' can be reached from other machines" in done.output
    assert "hybridqa keys add" in done.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = runner.invoke(app, ["serve", "--port", str(port)])
    assert done.exit_code == 2 and f"port {port}" in done.output and "--port 0" in done.output


def test_with_a_key_it_listens_where_it_is_told(environment: dict[str, str]) -> None:
    made = CliRunner(env=environment).invoke(app, ["keys", "add", "test", "--all-collections", "--json"])
    token = json.loads(made.stdout)["token"]
    command = [sys.executable, "-m", "hybridqa", "serve", "--host", "0.0.0.0", "--port", "0", "--json"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        port = json.loads(running.stdout.readline())["url"].rpartition(":")[2]
        with OpenAI(base_url=f"http://127.0.0.1:{port}", api_key=token, max_retries=0, timeout=60) as client:
            assert len(client.models.list().data) == 4
        with (
            OpenAI(base_url=f"http://127.0.0.1:{port}", api_key="guess", max_retries=0) as stranger,
            pytest.raises(AuthenticationError),
        ):
            stranger.models.list()
        running.kill()
