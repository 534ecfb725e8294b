"""Files to text: every format, every encoding, every refusal."""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.readers import SourceText, is_folder, read_bytes, read_path, walk
from hybridqa.ingest.source import normalise

LIMIT = 1_000_000


def read(data: bytes | str, name: str, limit: int = LIMIT) -> SourceText:
    source = read_bytes(data.encode() if isinstance(data, str) else data, name=name, max_bytes=limit)
    for heading in source.headings:
        assert source.text[heading.start :].startswith(heading.title)
        assert heading.start == 0 or source.text[heading.start - 1] == "\n"
    assert normalise(source.text) == source.text
    return source


def make_pdf(*pages: str, title: str = "") -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    if title:
        canvas.setTitle(title)
    for page in pages:
        text = canvas.beginText(72, 720)
        for line in page.split("\n"):
            text.textLine(line)
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def make_docx(build: Callable[[docx.document.Document], None]) -> bytes:
    document = docx.Document()
    build(document)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def refused(data: bytes | str, name: str, limit: int = LIMIT) -> str:
    with pytest.raises(UnreadableDocumentError) as caught:
        read(data, name, limit)
    message = str(caught.value)
    assert repr(name) in message
    return message


def test_text() -> None:
    source = read("\ufeffOne \r\ntwo\rthree\x00\x07\n\n\n\n\n\nfour\n\n", "a/My notes.txt")
    assert source == SourceText("My notes", "One\ntwo\nthree\n\n\nfour", "text/plain")
    assert read("a,b\n1,2", "t.csv").media_type == "text/csv"
    assert read("Title\n=====", "t.rst").text == "Title\n====="
    assert read("no ending", "LICENSE").media_type == "text/plain"


@pytest.mark.parametrize(
    "data",
    [
        "Grüße – “ok”".encode(),
        "Grüße – “ok”".encode("utf-8-sig"),
        "Grüße – “ok”".encode("utf-16"),
        b"\xfe\xff" + "Grüße – “ok”".encode("utf-16-be"),
        "Grüße – “ok”".encode("utf-32"),
        "Grüße – “ok”".encode("cp1252"),
    ],
)
def test_encodings(data: bytes) -> None:
    assert read(data, "a.txt").text == "Grüße – “ok”"
    assert read(data, "a.md").text == "Grüße – “ok”"


def test_latin_1_is_the_last_resort() -> None:
    assert read(b"caf\xe9 \x81, two\x81\xa0words", "a.txt").text == "café , two\xa0words"  # \x81 is no character


def test_next_line_ends_a_line() -> None:
    assert read("one\x85two\x9d", "a.txt").text == "one\ntwo"


def test_a_declared_encoding_is_used() -> None:
    markup = "<html><head><meta charset='koi8-r'></head><body><p>Привет</p></body></html>"
    assert read(markup.encode("koi8-r"), "a.html").text == "Привет"
    assert read(b"<meta charset='no-such'><p>caf\xe9</p>", "a.html").text == "café"
    assert read(b"<meta charset='hex'><p>caf\xe9</p>", "a.html").text == "café"


@pytest.mark.parametrize("label", ["utf-16", "UTF-16LE", "utf-32", "unicode", "unicode_escape"])
def test_markup_that_can_be_read_is_in_no_wide_encoding(label: str) -> None:
    for space in ("", " "):  # an even and an odd number of bytes
        markup = f"<html><head><meta charset='{label}'></head><body><p>The price is 40 €\\x41.{space}</p></body></html>"
        assert read(markup.encode(), "a.html").text == "The price is 40 €\\x41."


@pytest.mark.parametrize("label", ["iso-8859-1", "latin-1", "latin1", "ascii", "US-ASCII"])
def test_latin_1_on_the_web_is_windows_1252(label: str) -> None:
    markup = f"<meta charset={label}><p>It’s “here” for 5 €</p>".encode("cp1252")
    assert read(markup, "a.html").text == "It’s “here” for 5 €"


@settings(deadline=None)
@given(st.text(st.characters(), max_size=200))
def test_normalising_again_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    once.encode("utf-8")
    assert "\r" not in once
    assert "\x00" not in once
    assert not any("\x7f" <= character < "\xa0" for character in once)


MARKDOWN = """---
title: "A title"
tags: [x]
---
Intro **bold** _it_ [link](http://a.b/c_(d) "t") `co*d*e` ![alt](i.png).

# One
Text a < b and c > d, snake_case_name, 2 * 3 * 4, List<String>, [1][2], [ref][r], R&amp;D \\* <b>tag</b>.

[r]: http://foo

## Two `x`

```python
# no heading **kept** <!-- kept -->
```

| a | b |
|---|---|
| 1 | 2 |

Setext
======
<!-- a comment
over lines -->
<div>
in html
</div>
"""


def test_markdown() -> None:
    source = read(MARKDOWN, "a.md")
    assert (source.title, source.media_type) == ("A title", "text/markdown")
    assert [(h.level, h.title) for h in source.headings] == [(1, "One"), (2, "Two x"), (1, "Setext")]
    assert "Intro bold it link co*d*e alt." in source.text
    assert "Text a < b and c > d, snake_case_name, 2 * 3 * 4, List<String>, [1][2], ref, R&D * tag." in source.text
    assert "```python\n# no heading **kept** <!-- kept -->\n```" in source.text
    assert "| a | b |\n|---|---|\n| 1 | 2 |" in source.text
    assert "in html" in source.text
    for gone in ("http", "comment", "tags", "<div>", "===", "#  "):
        assert gone not in source.text


def test_markdown_titles() -> None:
    assert read("## Low\n\n# High\n\ntext", "file.md").title == "High"
    assert read("only text", "file.md").title == "file"
    assert read("---\n\nA rule, no front matter\n\n---\n\nmore", "f.md").text.startswith("---\n\nA rule")
    assert read("# A\n#\n# \nb", "f.md").headings[0].title == "A"


HTML = """<!DOCTYPE html><html><head><title>The
 Page</title><style>x{}</style><script>alert(1)</script></head><body>
<nav><a>Home</a></nav><div role="navigation">Menu</div>
<header><h1>Main <i>Title</i><a class="headerlink">¶</a></h1></header>
<p>Para one<br>second   line. <b>Bo</b>ld.</p><div>Div<p>inner</p>tail</div>
<ul><li>one<ul><li>nested</li></ul></li><li><p>two</p></li></ul><ol><li>x<li>y</ol>
<h2>Sec</h2><table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td><p>2</p><p>3</p></td></tr></table>
<h3>Code</h3><pre>  code
    indented</pre><noscript>no script</noscript><template>tpl</template><aside>side</aside><div hidden>hid</div>
<!-- comment --><footer>foot</footer></body></html>"""


def test_html() -> None:
    source = read(HTML, "a.html")
    assert (source.title, source.media_type) == ("The Page", "text/html")
    assert source.text.split("\n\n") == [
        "Main Title",
        "Para one\nsecond line. Bold.",
        "Div",
        "inner",
        "tail\n- one\n- nested\n- two\n1. x\n2. y",
        "Sec",
        "A | B\n1 | 2 3",
        "Code",
        "  code\n    indented",
    ]
    assert [(h.level, h.title) for h in source.headings] == [(1, "Main Title"), (2, "Sec"), (3, "Code")]


def test_html_content() -> None:
    page = "<p>outside</p><main><h1>In</h1><aside>note</aside></main><p>after</p>"
    assert read(page, "a.htm").text == "In\n\nnote"
    assert read(page, "a.htm").title == "In"
    assert read("<nav>only navigation</nav>", "a.htm").text == "only navigation"
    assert read("plain, no tag", "a.html").text == "plain, no tag"
    layout = "<table><tr><td><h1>T</h1><table><tr><td>1</td><td>2</td></tr></table></td></tr></table>"
    assert read(layout, "a.html").text == "T\n\n1 | 2"
    assert read("<?xml version='1.0' encoding='utf-16'?><html><body>xhtml</body></html>", "page").text == "xhtml"
    assert read("<!doctype html><p>sniffed", "page").media_type == "text/html"


def test_deep_html_is_read_or_refused_never_cut() -> None:
    assert read("<div>" * 1000 + "deep text", "a.html").text == "deep text"
    assert "too deep" in refused("<p>top</p>" + "<div>" * 50_000 + "deep text", "a.html")


def test_pdf() -> None:
    data = make_pdf("First page hyphen-\nated Anglo-\nSaxon words.", "Second page.", title="On Pages")
    source = read(data, "a.pdf")
    assert (source.title, source.media_type) == ("On Pages", "application/pdf")
    assert source.text == "First page hyphenated Anglo-Saxon words.\n\nSecond page."
    assert read(make_pdf("x y"), "b.pdf").title == "b"
    assert read(data, "no ending").text == source.text


def test_pdfs_that_are_refused() -> None:
    assert "ocrmypdf" in refused(make_pdf("", ""), "scan.pdf")
    whole = make_pdf("some text on a page")
    assert "damaged" in refused(whole[: len(whole) // 3], "cut.pdf")
    assert "damaged" in refused(b"%PDF-1.7\n" + os.urandom(5000), "noise.pdf")
    assert "damaged" in refused("no pdf at all", "text.pdf")
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(whole)))
    writer.encrypt("secret", algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    assert "password" in refused(buffer.getvalue(), "locked.pdf")


def test_a_pdf_with_an_owner_password_alone_is_read() -> None:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf("some text"))))
    writer.encrypt("", "owner", algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    assert read(buffer.getvalue(), "a.pdf").text == "some text"


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["pdf", "docx"]))
    damaged = bytearray(PDF if kind == "pdf" else DOCX)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_bytes(bytes(damaged), name=f"a.{kind}", max_bytes=LIMIT)
    except UnreadableDocumentError as error:
        assert f"'a.{kind}'" in str(error)


def fill(document: docx.document.Document) -> None:
    document.core_properties.title = "Core title"
    document.add_paragraph("Before.")
    document.add_heading("One", 1)
    document.add_paragraph("Text with a\ttab and\na break.")
    document.add_heading("Two", 2)
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Bullet")
    table = document.add_table(2, 2)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"cell {number}"
    body = document.element.body
    body.insert(
        len(body) - 1,
        parse_xml(
            f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p><w:r><w:t>In a control</w:t></w:r><w:ins><w:r>"
            "<w:t> inserted</w:t></w:r></w:ins>"
            "<w:del><w:r><w:delText> deleted</w:delText></w:r></w:del></w:p></w:sdtContent></w:sdt>"
        ),
    )


PDF = make_pdf("A page of text.\nMore text.", title="T")
DOCX = make_docx(fill)


def test_docx() -> None:
    source = read(DOCX, "a.docx")
    assert source.title == "Core title"
    assert source.text == (
        "Before.\n\nOne\n\nText with a\ttab and\na break.\n\nTwo\n\n- first\n- second\n\n"
        "cell 0 | cell 1\ncell 2 | cell 3\n\nIn a control inserted"
    )
    assert [(h.level, h.title) for h in source.headings] == [(1, "One"), (2, "Two")]
    assert read(DOCX, "no ending").text == source.text


def test_docx_titles() -> None:
    def titled(document: docx.document.Document) -> None:
        document.add_heading("The title", 0)
        document.add_heading("One", 1)

    assert read(make_docx(titled), "a.docx").title == "The title"
    assert read(make_docx(lambda document: document.add_heading("One", 1)), "a.docx").title == "One"
    assert read(make_docx(lambda document: document.add_paragraph("text")), "a.docx").title == "a"


def test_docx_that_are_refused() -> None:
    assert "no text" in refused(make_docx(lambda document: None), "blank.docx")
    assert "damaged" in refused(DOCX[: len(DOCX) // 2], "cut.docx")
    assert "damaged" in refused("no zip at all", "text.docx")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/other.xml", "<x/>")
    assert "damaged" in refused(buffer.getvalue(), "other.docx")


@pytest.mark.parametrize("part", ["word/document.xml", "word/media/image.bin"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(part: str) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(part, "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(b"\x00" * 1_000_000)
    data = buffer.getvalue()
    assert len(data) < LIMIT
    begin = time.perf_counter()
    assert "unpacks to 300,000,000 bytes" in refused(data, "bomb.docx")
    assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv", "a.rst", "a.log", "unknown"])
def test_binary_is_refused(name: str) -> None:
    assert "binary" in refused(os.urandom(4000), name)
    assert "binary" in refused(b"\x7fELF" + bytes(range(256)) * 20, name)
    assert "binary" in refused(b"text\x00" * 100, name)


def test_other_formats_under_a_text_name_are_refused() -> None:
    assert "binary" in refused(PDF, "a.txt")
    assert "binary" in refused(DOCX, "a.md")


@pytest.mark.parametrize("suffix", [".txt", ".md", ".html", ".pdf", ".docx", ".csv", ""])
def test_empty_documents_are_refused(suffix: str) -> None:
    assert "empty" in refused(b"", "a" + suffix)
    assert "empty" in refused(b" \n\t\r\n ", "a" + suffix)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("...\n---", "a.txt"),
        ("\ufeff \u3000", "a.txt"),
        ("<html><script>x</script></html>", "a.html"),
        ("<!-- c -->", "a.html"),
        ("---\ntitle: x\n---\n", "a.md"),
        ("[a]: http://b", "a.md"),
    ],
)
def test_documents_without_text_are_refused(data: str, name: str) -> None:
    assert "no text" in refused(data, name)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "Été.md"
    path.write_text("# Hello\nworld", encoding="utf-8")
    assert read_path(path, max_bytes=100).title == "Hello"
    for missing in (tmp_path / "nothing.txt", tmp_path / "nothing"):
        with pytest.raises(UnreadableDocumentError, match=r"nothing at '.*nothing"):
            read_path(missing, max_bytes=100)
    with pytest.raises(UnreadableDocumentError, match="no file"):
        read_path(tmp_path, max_bytes=100)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UnreadableDocumentError, match="no file"):
        read_path(tmp_path / "pipe.txt", max_bytes=100)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(UnreadableDocumentError, match="permissions"):
        read_path(path, max_bytes=100)


@pytest.mark.parametrize("size", [50_000_000, 50_000_000_000])
def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        file.truncate(size)  # takes no room
    begin = time.perf_counter()
    with pytest.raises(UnreadableDocumentError, match=rf"{size:,} bytes.*20,000,000.*max_document_mb"):
        read_path(path, max_bytes=20_000_000)
    assert time.perf_counter() - begin < 0.5


def test_content_over_the_limit_is_refused() -> None:
    assert "expected at most 3" in refused("text", "a.txt", 3)


@pytest.mark.parametrize("suffix", [".txt", ".md", ".html"])
def test_fifteen_megabytes_are_read_in_seconds(suffix: str) -> None:
    text = ("Some words *here* and [there](http://x), a < b & more. " * 12 + "\n\n") * 23_000
    assert len(text) > 14_000_000
    begin = time.perf_counter()
    source = read_bytes(text.encode(), name="a" + suffix, max_bytes=20_000_000)
    assert time.perf_counter() - begin < 20
    assert len(source.text) > 9_000_000


def test_walking(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.MD",
        "sub/c.pdf",
        "sub/d.png",
        ".hidden.txt",
        ".git/e.txt",
        "sub/.x/f.md",
        "z.docx",
        "noending",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "folder.txt").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path)]
    assert found == ["a.MD", "b.txt", "sub/c.pdf", "z.docx"]
    assert list(walk(tmp_path / "noending")) == [tmp_path / "noending"]
    with pytest.raises(UnreadableDocumentError, match=r"holds no document.*\.docx"):
        walk(tmp_path / "folder.txt")
    with pytest.raises(UnreadableDocumentError, match="nothing at"):
        walk(tmp_path / "nowhere")


def test_what_may_not_be_looked_at_is_named(open_folder: Path) -> None:
    """A folder without permission to read, and one without permission to enter."""
    for name in ("a.txt", "closed/b.txt", "listed/c.txt"):
        (open_folder / name).parent.mkdir(exist_ok=True)
        (open_folder / name).write_text("some words")
    (open_folder / "closed").chmod(0o000)
    (open_folder / "listed").chmod(0o444)
    problems: list[UnreadableDocumentError] = []
    assert [path.name for path in walk(open_folder, problems.append)] == ["a.txt"]
    texts = sorted(map(str, problems))
    assert [("closed" in text, "c.txt" in text) for text in texts] == [(True, False), (False, True)]
    assert all("Permission denied" in text for text in texts)
    with pytest.raises(UnreadableDocumentError, match="closed"):
        walk(open_folder)
    with pytest.raises(UnreadableDocumentError, match="Permission denied"):
        is_folder(open_folder / "closed" / "below")


def test_a_text_that_was_given_for_a_path() -> None:
    for call in (is_folder, walk):
        with pytest.raises(UnreadableDocumentError, match="too long"):
            call(Path("word " * 100))
