"""The package as a whole: what importing it costs, what its wheel holds, and how its files are kept."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hybridqa

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "hybridqa").rglob("*.py"))
MAX_LINES = 300


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run_python(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import hybridqa",
        "from hybridqa import Settings, HybridQAError, Document, Answer",
        "import hybridqa.vllm_plugin",
    ],
)
def test_importing_is_light(statement: str) -> None:
    heavy = ["torch", "vllm", "faiss", "langchain", "langchain_core", "transformers", "sentence_transformers", "peft"]
    assert run_python(f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])") == "[]\n"


def test_the_command_line_imports_light() -> None:
    """`hybridqa --help` must not wait for torch."""
    heavy = ["torch", "vllm", "faiss", "transformers", "sentence_transformers"]
    code = f"import sys, hybridqa.cli\nprint([name for name in {heavy} if name in sys.modules])"
    assert run_python(code) == "[]\n"


@pytest.mark.parametrize("name", hybridqa.__all__)
def test_a_public_name_can_be_had(name: str) -> None:
    assert getattr(hybridqa, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        hybridqa.nothing_of_this_name  # noqa: B018


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files in a wheel built from what is in the working tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("hybridqa", "indexes", "modules", "eval", "examples", "tests"):
        heavy = ("__pycache__", "*.sqlite3", *(() if name == "hybridqa" else ("*.safetensors",)))
        ignored = shutil.ignore_patterns(*heavy)
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(source),
        ".",
    ]
    done = subprocess.run(build, capture_output=True, text=True, cwd=source, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_hybridqa_alone(wheel_names: set[str]) -> None:
    """A wheel that installed `eval` or `modules` would shadow its users' names."""
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"hybridqa", f"hybridqa-{hybridqa.__version__}.dist-info"}


def test_the_wheel_holds_every_file_of_the_package(wheel_names: set[str]) -> None:
    assert {relative(path) for path in FILES} | {"hybridqa/py.typed", "hybridqa/server/page.html"} <= wheel_names
    extractors = {relative(path) for path in (ROOT / "hybridqa" / "extractors").rglob("*.*") if path.is_file()}
    assert extractors and extractors <= wheel_names


def test_no_file_is_too_long_for_one_noun() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def test_every_module_says_what_it_is() -> None:
    silent = [relative(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_nothing_is_unpickled() -> None:
    """Stores are shared between people: no format that runs code when it is read."""
    offenders = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            offenders += [relative(path) for name in names if name.split(".")[0] in {"pickle", "dill", "joblib"}]
    assert not offenders
