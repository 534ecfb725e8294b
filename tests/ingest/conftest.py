"""A folder whose permissions count: the superuser's tests act as somebody else in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder; as root, the test runs under another user's id."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if superuser := os.geteuid() == 0:
            folder.chmod(0o777)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if superuser:
                os.seteuid(0)
            for path in folder.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
