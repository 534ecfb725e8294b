"""README and its kin are true: their commands and options exist, their Python runs, their links lead somewhere.

A ```python block is compiled; one under `<!-- test: run -->` is also run, in an empty folder with `examples/` in it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hybridqa.config import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / name / "README.md" for name in ("eval", "indexes", "modules"))})
BLOCK = re.compile(
    r"(?P<mark><!-- test: run -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(language: str) -> list[re.Match[str]]:
    return [match for match in BLOCK.finditer(README) if match["language"] == language]


def shell_commands() -> list[list[str]]:
    """The commands of README's bash blocks and behind `$` in its console blocks, each split into words."""
    code = "".join(block["code"] for block in blocks("bash")).replace("\\\n", " ")
    console = "".join(block["code"] for block in blocks("console"))
    lines = code.splitlines() + [line[2:] for line in console.splitlines() if line.startswith("$ ")]
    commands = (shlex.split(line, comments=True) for line in lines)
    return [words for words in commands if words]


def commands_of(program: str) -> list[list[str]]:
    """What README gives to `program`."""
    return [words[1:] for words in shell_commands() if words[0] == program]


def test_readme_shows_commands_and_python() -> None:
    assert len(commands_of("hybridqa")) >= 9
    assert blocks("python")


def ask_for_help(words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command with `--help` behind it: click refuses what it does not know before it prints the help."""
    command = [sys.executable, "-c", "from hybridqa.cli import main; main()", *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False)


@pytest.mark.parametrize("words", commands_of("hybridqa"), ids=shlex.join)
def test_a_command_and_its_options_exist(words: list[str]) -> None:
    done = ask_for_help(words)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_option_that_does_not_exist_is_noticed() -> None:
    assert ask_for_help(["ls", "--no-such-option"]).returncode != 0
    assert ask_for_help(["no-such-command"]).returncode != 0


@pytest.mark.parametrize("words", commands_of("make"), ids=shlex.join)
def test_a_make_target_exists(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in words if re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)] == words


@pytest.mark.parametrize(
    "block", blocks("python"), ids=lambda block: f"line-{README[: block.start()].count(chr(10)) + 1}"
)
def test_python_compiles(block: re.Match[str]) -> None:
    compile(block["code"], "README.md", "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [block for block in blocks("python") if block["mark"]],
    ids=lambda block: f"line-{README[: block.start()].count(chr(10)) + 1}",
)
def test_marked_python_runs(block: re.Match[str], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tmp_path / "block.py"
    script.write_text(block["code"], encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def settings_table() -> dict[str, str]:
    """README's settings: name → default as written."""
    section = README.split("## Settings")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", section, re.MULTILINE))


def test_the_settings_table_is_complete_and_true() -> None:
    fields = Settings.model_fields
    table = settings_table()
    assert set(table) == set(fields)
    computed = {"store", "cache_dir", "kv_cache_mb"}  # the working directory, the user's cache, the device's: in words
    wrong = {name: (table[name], fields[name].default) for name in set(fields) - computed}
    assert not {name: pair for name, pair in wrong.items() if pair[0].strip() != str(pair[1])}


def test_the_layout_is_true() -> None:
    """Every name in README's tree exists, and every folder of the package is in it."""
    tree = README.split("## Layout")[1].split("```")[1]
    named, parents = set(), [""]
    for line in tree.splitlines()[1:]:
        match = re.match(r"(?P<indent> *)(?P<names>\S+(?: \S+)*)(?:  +|$)", line)
        if not match or len(match["indent"]) > 24:
            continue
        depth = len(match["indent"]) // 2
        for name in match["names"].split(" "):
            named.add(parents[depth] + name)
        last = match["names"].split(" ")[-1]
        parents[depth + 1 :] = [parents[depth] + last] if last.endswith("/") else []
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    folders = {f"hybridqa/{path.name}/" for path in (ROOT / "hybridqa").iterdir() if (path / "__init__.py").exists()}
    assert folders <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Outside of code blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert not [target for target in targets if target and not (page.parent / target).exists()]
