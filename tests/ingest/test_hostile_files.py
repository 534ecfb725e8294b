"""Files made to harm whoever reads them: each is read or refused in bounded time and memory, and shows nothing."""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache

import docx
import pytest
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.apart import read_apart
from hybridqa.ingest.readers import SourceText, read_bytes
from hybridqa.ingest.source import MAX_HEADINGS, MAX_TITLE

LIMIT = 1_000_000
SECONDS = 15.0  # of what takes at most 3 here
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
FONT = "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"


def repeated(unit: str | bytes, size: int = LIMIT) -> bytes:
    raw = unit.encode() if isinstance(unit, str) else unit
    return raw * (size // len(raw))


# PDF


def pdf(objects: Iterable[str | bytes], trailer: str = "") -> bytes:
    """A file of these objects, the first of which is its catalog."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content.encode() if isinstance(content, str) else content)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\n" % (len(places) + 1, trailer.encode())
    return bytes(out) + b"startxref\n%d\n%%%%EOF\n" % table


def stream(content: bytes, about: str = "", *, packed: bool = False) -> bytes:
    if packed:
        content, about = zlib.compress(content, 9), f"{about} /Filter /FlateDecode"
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), about.encode(), content)


def page_of(
    content: bytes, *, pages: int = 1, resources: str = FONT, more: tuple[bytes, ...] = (), **how: bool
) -> bytes:
    """So many pages, each with this content; `more` are objects from number 4 on."""
    kids = " ".join(f"{4 + len(more) + number} 0 R" for number in range(pages))
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << {resources} >> /Contents 3 0 R >>"
    tree = f"<< /Type /Pages /Count {pages} /Kids [{kids}] >>"
    return pdf(["<< /Type /Catalog /Pages 2 0 R >>", tree, stream(content, **how), *more, *[page] * pages])


def shown(text: bytes) -> bytes:
    return b"BT /F1 12 Tf 72 700 Td " + text + b" ET"


def forms(levels: int, each: int) -> bytes:
    """Forms that show forms that show forms: `each` to the power of `levels` in all."""
    body = b"/X Do " * each
    more = [
        stream(
            shown(b"(deep words) Tj") if level == levels - 1 else body,
            "/Type /XObject /Subtype /Form /BBox [0 0 600 800] /Resources << "
            + (FONT if level == levels - 1 else f"/XObject << /X {5 + level} 0 R >>")
            + " >>",
        )
        for level in range(levels)
    ]
    return page_of(body, resources="/XObject << /X 4 0 R >>", more=tuple(more))


def numbered(pages: int) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for number in range(pages):
        canvas.drawString(72, 700, f"This is page {number}.")
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def encrypted() -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(numbered(1))))
    writer.encrypt("secret", algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


CATALOG = "<< /Type /Catalog /Pages 2 0 R >>"
PDFS: dict[str, Callable[[], bytes]] = {
    "flate bomb": lambda: page_of(shown(b"(a) Tj") + bytes(100_000_000), packed=True),
    "bomb in a bomb": lambda: page_of(zlib.compress(bytes(90_000_000)), packed=True, pages=1).replace(
        b"/Filter /FlateDecode", b"/Filter [/FlateDecode /FlateDecode]"
    ),
    "contents that pages share": lambda: page_of(shown(repeated(b"(ab cd ef) Tj ", 50_000)), pages=2_000),
    "contents that pages share, without text": lambda: page_of(repeated(b"q Q ", 100_000) + shown(b""), pages=2_000),
    "a page 100,000 times": lambda: pdf(
        [CATALOG, f"<< /Type /Pages /Count 99999 /Kids [{'3 0 R ' * 99_999}] >>", "<< /Type /Page >>"]
    ),
    "pages of themselves": lambda: pdf(
        [CATALOG, "<< /Type /Pages /Count 2 /Kids [2 0 R 3 0 R] >>", "<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] >>"]
    ),
    "a parent of itself": lambda: pdf(
        [CATALOG, "<< /Type /Pages /Parent 3 0 R /Count 1 /Kids [3 0 R] >>", "<< /Type /Page /Parent 3 0 R >>"]
    ),
    "deep pages": lambda: pdf(
        [CATALOG, *(f"<< /Type /Pages /Count 1 /Kids [{number + 3} 0 R] >>" for number in range(10_000))]
    ),
    "a reference to itself": lambda: pdf([CATALOG, "2 0 R"]),
    "a table before itself": lambda: pdf([CATALOG, "<< /Type /Pages /Count 0 /Kids [] >>"], "/Prev 9"),
    "tables in a ring": lambda: (
        b"%PDF-1.7\nxref\n0 0\ntrailer\n<< /Root 1 0 R /Prev 52 >>\n\nxref\n0 0\ntrailer\n<< /Root 1 0 R /Prev 9 >>\n"
        b"startxref\n9\n%%EOF"
    ),
    "an object stream in itself": lambda: pdf(
        [CATALOG, stream(b"2 0 << /Type /Pages >>", "/Type /ObjStm /N 1 /First 4 /Extends 2 0 R")]
    ),
    "a length that is its own": lambda: pdf([CATALOG, "<< /Length 2 0 R >>\nstream\nx\nendstream"]),
    "forms without end": lambda: forms(40, 2),
    "a form of itself": lambda: page_of(
        b"/X Do",
        resources="/XObject << /X 4 0 R >>",
        more=(
            stream(
                shown(b"(once) Tj") + b" /X Do",
                f"/Type /XObject /Subtype /Form /Resources << {FONT} /XObject << /X 4 0 R >> >>",
            ),
        ),
    ),
    "brackets": lambda: page_of(shown(b"[" * 900_000 + b"] TJ")),
    "dictionaries": lambda: page_of(shown(repeated(b"<< /a ", 900_000))),
    "parentheses": lambda: page_of(shown(b"(" * 900_000)),
    "deep arrays in the catalog": lambda: pdf([CATALOG[:-2] + "/X " + "[" * 900_000]),
    "objects without a table": lambda: b"%PDF-1.7\n" + repeated(b"1 0 obj<<>>endobj\n"),
    "many ends": lambda: b"%PDF-1.7\n" + repeated(b"startxref\n9\n%%EOF\n"),
    "cut off": lambda: numbered(50)[:-5_000],
    "a locked one": encrypted,
    "a negative length": lambda: page_of(shown(b"(a) Tj")).replace(b"/Length 3", b"/Length -3"),
    "huge numbers": lambda: page_of(shown(b"9" * 100_000 + b" 1e999999 Td (a) Tj")),
}


# DOCX


def word(body: bytes, *, doctype: str = "", more: Iterable[tuple[str, bytes]] = (), relations: str = "") -> bytes:
    buffer, out = io.BytesIO(), io.BytesIO()
    docx.Document().save(buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "word/document.xml":
                head = f'<?xml version="1.0"?>{doctype}<w:document xmlns:w="{W}"><w:body>'
                content = head.encode() + body + b"</w:body></w:document>"
            elif name == "word/_rels/document.xml.rels":
                content = content.replace(b"</Relationships>", relations.encode() + b"</Relationships>")
            target.writestr(name, content)
        for name, content in more:
            target.writestr(name, content)
    return out.getvalue()


def paragraph(text: str | bytes) -> bytes:
    return b"<w:p><w:r><w:t>" + (text.encode() if isinstance(text, str) else text) + b"</w:t></w:r></w:p>"


def entities(count: int, each: int) -> str:
    """Each entity is so many of the one before."""
    laughs = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * each}'>" for n in range(1, count))
    return f"<!DOCTYPE w [<!ENTITY e0 'ha'>{laughs}]>"


def zipped(entries: Iterable[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries:
            target.writestr(name, content)
    return out.getvalue()


def lying() -> bytes:
    """An archive whose directory says that its text is short."""
    size = 50_000_000
    data = word(paragraph(b"word " * (size // 5)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        true = archive.getinfo("word/document.xml").file_size
    return data.replace(true.to_bytes(4, "little"), (5_000).to_bytes(4, "little"))


PICTURE = '<Relationship Id="x{0}" Type="http://x/image" Target="media/{0}.xml"/>'
DOCXS: dict[str, Callable[[], bytes]] = {
    "a bomb of text": lambda: word(paragraph(b"word " * 600_000)),
    "a bomb of paragraphs": lambda: word(repeated("<w:p/>", 3_900_000) + paragraph("a")),
    "a bomb of words": lambda: word(repeated("<w:p><w:r><w:t>ab cd ef gh ij kl</w:t></w:r></w:p>", 3_900_000)),
    "a bomb beside it": lambda: word(paragraph("a"), more=[("word/media/a.bin", bytes(50_000_000))]),
    "a bomb in a bomb": lambda: zipped([("word/document.xml", zipped([("x", bytes(50_000_000))]))]),
    "a directory that lies": lying,
    "laughs": lambda: word(paragraph("&e9;"), doctype=entities(10, 10)),
    "one long laugh": lambda: word(paragraph("&e;" * 100_000), doctype=f"<!DOCTYPE w [<!ENTITY e '{'ha' * 50_000}'>]>"),
    "laughs in an attribute": lambda: word(b"<w:p a='&e9;'/>", doctype=entities(10, 10)),
    "many parts": lambda: word(
        paragraph("a"),
        more=[(f"word/media/{n}.xml", b"<x/>") for n in range(7_000)],
        relations="".join(PICTURE.format(n) for n in range(7_000)),
    ),
    "too many parts": lambda: word(paragraph("a"), more=[(f"{n}", b"") for n in range(10_500)]),
    "parts that name each other": lambda: word(
        paragraph("a"),
        relations='<Relationship Id="me" Type="http://x/x" Target="document.xml"/>',
    ),
    "deep tables": lambda: word(repeated(b"<w:tbl><w:tr><w:tc>", 1_000_000)),
    "deep controls": lambda: word(b"<w:sdt>" * 200 + paragraph("a") + b"</w:sdt>" * 200),
    "no body": lambda: word(b"").replace(b"w:body", b"w:nope"),
}


# Markup and text


def lines(line: str) -> Callable[[], bytes]:
    return lambda: repeated(line, LIMIT - 10) + b"a"


TEXTS: dict[str, Callable[[], bytes]] = {
    "deep.html": lambda: b"<div>" * 100_000 + b"a",
    "deep and closed.html": lambda: repeated("<div>" * 2_000 + "a" + "</div>" * 2_000),
    "unclosed.html": lines("<p>a<li>b<td>c"),
    "attributes.html": lambda: b"<p " + b" ".join(b"a%d=1" % n for n in range(90_000)) + b">a",
    "attributes with brackets.html": lambda: b"<p " + b" ".join(b"a%d='>'" % n for n in range(90_000)) + b">a",
    "attribute.html": lambda: b"<p title='" + b"x" * (LIMIT - 100) + b"'>a",
    "entities.html": lines("&amp;"),
    "no entities.html": lines("&nope;"),
    "entity.html": lambda: b"<!DOCTYPE html [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><p>a &e;</p>",
    "laughs.html": lambda: entities(10, 10).encode() + b"<p>a &e9;</p>",
    "comments.html": lines("<!-- "),
    "scripts.html": lines("<script>"),
    "half tags.html": lines("<a "),
    "numbers.html": lambda: b"<ol>" + repeated("<li>a", LIMIT - 100),
    "headings.html": lines("<h2>a"),
    "title.html": lambda: b"<title>" + repeated("title ", LIMIT - 200) + b"</title><h1>" + b"head " * 20 + b"</h1>a",
    "quotes.md": lambda: b">" * (LIMIT - 10) + b" a",
    "quotes in lines.md": lines("> > > > > > > > a\n"),
    "stairs.md": lambda: b"".join(b">" * n + b" a\n" for n in range(1, 1_350)),
    "brackets.md": lambda: b"[" * (LIMIT - 10) + b"a",
    "brackets in lines.md": lines("[" * 1_000 + "a\n"),
    "links.md": lines("[a]("),
    "images.md": lines("!["),
    "stars.md": lines("*a **a"),
    "ticks.md": lines("`a"),
    "lists.md": lambda: b"".join(b"  " * n + b"- a\n" for n in range(950)),
    "list.md": lines("- "),
    "references.md": lambda: b"".join(b"[r%d]: /u\n" % n for n in range(60_000)) + b"a",
    "open references.md": lines("[r]: /u 't\n"),
    "open labels.md": lambda: repeated("[r\n", LIMIT // 2),
    "table.md": lambda: b"|a" * 100_000 + b"|\n" + b"|-" * 100_000 + b"|\n" + b"|\n" * 100_000,
    "headings.md": lines("# a\n"),
    "heading.md": lambda: b"# " + repeated("head ", LIMIT - 10) + b"\na",
    "front.md": lambda: b"---\n" + repeated("a: b\n", LIMIT - 10),
    "html.md": lines("<div>\na\n\n"),
    "comments.md": lines("<!--\n"),
    "word.txt": lambda: b"a" * LIMIT,
    "lines.txt": lambda: b"a" + b"\n" * (LIMIT - 2) + b"b",
    "line ends.txt": lambda: b"a" + b"\r" * (LIMIT - 2) + b"b",
    "spaces.txt": lambda: b"a" + b" " * (LIMIT - 2) + b"b",
    "emoji.txt": lambda: repeated("😀", LIMIT - 10) + b"a",
    "quotes.csv": lines('1,"a ""b""",c\n'),
    "nul.txt": lambda: b"a\x00" * 500_000,
    "half a pair.txt": lambda: b"\xff\xfe" + b"\x00\xd8a\x00" * 10_000,
    "odd.txt": lambda: b"\xff\xfe" + "words".encode("utf-16-le") + b"x",
    "beyond unicode.txt": lambda: b"\xff\xfe\x00\x00" + b"\xff\xff\xff\x7f" * 10_000 + "word".encode("utf-32-le"),
    "two marks.txt": lambda: b"\xef\xbb\xbf" * 1_000 + b"words",
    "overlong.txt": lambda: b"\xc0\xaf" * 10_000 + b"words",
    "escapes.txt": lines("\x1b[2J\x1b]0;title\x07 a\u202e\u2066"),
}
CASES = [
    *((f"{name}.pdf", make) for name, make in PDFS.items()),
    *((f"{name}.docx", make) for name, make in DOCXS.items()),
    *TEXTS.items(),
]


@cache
def outcome_of(name: str) -> SourceText | str:
    return outcome(dict(CASES)[name](), name)


def outcome(data: bytes, name: str) -> SourceText | str:
    """What was read, or why it was refused."""
    assert len(data) <= LIMIT  # else no reader has seen it
    try:
        return read_bytes(data, name=name, max_bytes=LIMIT)
    except UnreadableDocumentError as error:
        assert repr(name) in str(error)
        return str(error)


@pytest.mark.parametrize(("name", "make"), CASES, ids=[name for name, _ in CASES])
def test_it_is_read_or_refused_within_bounds(name: str, make: Callable[[], bytes]) -> None:
    make()  # takes its own time
    begin = time.perf_counter()
    found = outcome_of(name)
    assert time.perf_counter() - begin < SECONDS
    if isinstance(found, SourceText):
        assert len(found.text) <= LIMIT
        assert len(found.title) <= MAX_TITLE
        assert len(found.headings) <= MAX_HEADINGS
        assert all(len(heading.title) <= MAX_TITLE for heading in found.headings)
        assert "root:" not in found.text
    else:
        assert len(found) < 1_000


REFUSED = {
    "flate bomb.pdf": "more in it than can be read",
    "contents that pages share.pdf": "more than 1,000,000 characters",
    "contents that pages share, without text.pdf": "bytes of page contents",
    "pages of themselves.pdf": "damaged",
    "deep pages.pdf": "more in it than can be read",
    "cut off.pdf": "",
    "a locked one.pdf": "password",
    "a bomb of text.docx": "more than 1,000,000 characters",
    "a bomb beside it.docx": "unpacks to",
    "a bomb in a bomb.docx": "damaged",
    "a directory that lies.docx": "damaged",
    "laughs.docx": "damaged",
    "too many parts.docx": "10,5",
    "deep tables.docx": "damaged",
    "deep.html": "too deep",
    "attributes.html": "attributes",
    "attributes with brackets.html": "attributes",
    "headings.html": "headings",
    "headings.md": "headings",
    "numbers.html": "characters",
    "nul.txt": "binary",
}


@pytest.mark.parametrize("name", [name for name, why in REFUSED.items() if why])
def test_why_it_is_refused(name: str) -> None:
    found = outcome_of(name)
    assert isinstance(found, str)
    assert REFUSED[name] in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a form of itself.pdf", "once"),
        ("many parts.docx", "a"),
        ("deep controls.docx", "a"),
        ("deep and closed.html", "a\n\na"),
        ("quotes.md", ">>>>"),
        ("brackets.md", "[[[["),
        ("odd.txt", "words\ufffd"),
        ("two marks.txt", "words"),
        ("spaces.txt", "a   "),
    ],
)
def test_what_can_be_read_is_read(name: str, text: str) -> None:
    found = outcome_of(name)
    assert isinstance(found, SourceText)
    assert found.text.startswith(text)


def test_files_of_the_machine_are_not_read(tmp_path: object) -> None:
    for target in ("file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:9/x", "../../../../etc/passwd"):
        doctype = f"<!DOCTYPE w [<!ENTITY e SYSTEM '{target}'>]>"
        relation = f'<Relationship Id="r9" Type="http://x/image" Target="{target}" TargetMode="External"/>'
        for data, name in (
            (word(paragraph("before &e; after"), doctype=doctype, relations=relation), "a.docx"),
            (word(paragraph("before"), doctype=f"<!DOCTYPE w SYSTEM '{target}'>"), "a.docx"),
            (f"{doctype}<p>before &e; <img src='{target}'><iframe src='{target}'></iframe>".encode(), "a.html"),
            (f"before ![a]({target}) [r]: {target}".encode(), "a.md"),
            (page_of(shown(b"(before) Tj")).replace(b"/Length", f"/F ({target}) /Length".encode()), "a.pdf"),
        ):
            found = outcome(data, name)
            assert "root:" not in str(found)
            assert isinstance(found, str) or "before" in found.text
    inside = '<Relationship Id="r9" Type="http://x/image" Target="../../../../etc/passwd"/>'
    assert "damaged" in str(outcome(word(paragraph("before"), relations=inside), "a.docx"))


def test_names_in_an_archive_are_no_paths(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["../../../tmp/x", "/tmp/x", "C:\\x", "a\x00b", "word/../../x", "x" * 60_000, "..", "a/"]
    found = outcome(word(paragraph("words"), more=[(name, b"evil") for name in names]), "a.docx")
    assert isinstance(found, SourceText)
    assert found.text == "words"


async def test_what_no_reader_can_bound_is_ended_apart() -> None:
    """Text in one piece: pypdf copies it whenever it grows."""
    data = page_of(shown(repeated(b"(word ) Tj ", 8_000_000)), packed=True)
    with pytest.raises(UnreadableDocumentError, match=r"'a\.pdf' takes more than 2 s"):
        await read_apart(data, name="a.pdf", max_bytes=20_000_000, limit_s=2, memory_mb=1024)


async def test_ten_thousand_pages_are_read() -> None:
    data = numbered(10_000)
    source = await read_apart(data, name="long.pdf", max_bytes=20_000_000, limit_s=60, memory_mb=1024)
    assert source.text.startswith("This is page 0.")
    assert source.text.endswith("This is page 9999.")
    assert source.text.count("\n\n") == 9_999


@pytest.mark.parametrize(
    "name", ["flate bomb.pdf", "bomb in a bomb.pdf", "forms without end.pdf", "a bomb of paragraphs.docx", "deep.html"]
)
async def test_it_is_the_same_apart(name: str) -> None:
    data = dict(CASES)[name]()
    here = outcome_of(name)
    try:
        there: SourceText | str = await read_apart(data, name=name, max_bytes=LIMIT, limit_s=60, memory_mb=1024)
    except UnreadableDocumentError as error:
        there = str(error)
    assert there == here
