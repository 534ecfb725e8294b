"""Names that clients send: what becomes of them as ids, and which are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.errors import InputError
from hybridqa.ingest.upload_name import MAX_CHARACTERS, upload_name


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\Windows\\win.ini", "win.ini"),
        ("C:\\Users\\Ann\\My notes.docx", "My notes.docx"),
        ("\\\\server\\share/mixed\\a.md", "a.md"),
        ("a\x00.txt", "a.txt"),
        ("two\nlines\t.txt", "two lines .txt"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        ("\u2066a\u2069\u200b\ufeff.txt", "a.txt"),
        ("\x1b[31mred.txt", "[31mred.txt"),
        ("a\u00a0b\u3000c.txt", "a b c.txt"),
        ("cafe\u0301.txt", "café.txt"),
        ("日本語.html", "日本語.html"),
        ("bad\udc80.txt", "bad.txt"),
        ("  spaced.txt ", "spaced.txt"),
        (".hidden", ".hidden"),
        ("...", "..."),
        ("%2e%2e%2fa.txt", "%2e%2e%2fa.txt"),  # nobody takes it apart again
    ],
)
def test_names(sent: str, name: str) -> None:
    assert upload_name(sent) == name


@pytest.mark.parametrize(
    "sent", ["", " ", ".", "..", "a/", "a\\", "../..", "/", "\x00", "\n", ".\u202e.", "\u200b", "\udc80", "dir/\u2028"]
)
def test_names_that_are_none(sent: str) -> None:
    with pytest.raises(InputError, match="is no file name") as caught:
        upload_name(sent)
    assert repr(sent) in str(caught.value)


def test_a_long_name_keeps_its_ending_and_stays_apart_from_others() -> None:
    one, other = upload_name("x" * 300 + "1.pdf"), upload_name("x" * 300 + "2.pdf")
    assert len(one) == len(other) == MAX_CHARACTERS
    assert one.endswith(".pdf")
    assert one[:150] == other[:150]
    assert one != other
    assert len(upload_name("a." + "x" * 100_000)) == MAX_CHARACTERS
    assert upload_name("x" * (MAX_CHARACTERS - 4) + ".pdf") == "x" * (MAX_CHARACTERS - 4) + ".pdf"


@given(st.text(st.characters(), max_size=400))
def test_every_name_is_an_id_or_refused(sent: str) -> None:
    try:
        name = upload_name(sent)
    except InputError:
        return
    assert name.isprintable()
    assert name == name.strip()
    assert 0 < len(name) <= MAX_CHARACTERS
    assert not set(name) & {"/", "\\"}
    assert name not in (".", "..")
    assert upload_name(name) == name
