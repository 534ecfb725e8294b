"""HTML to text: what a reader of the page would read, without scripts, styles and navigation.

Knows nothing about where the page came from. Invariant: the work is linear in the page and does not depend on how deep
its elements are nested.
"""

from __future__ import annotations

import re
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.source import Heading, SourceText, TextBuilder, one_line


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED = _words(
    "script style noscript template svg math head iframe object embed canvas audio video select option button input "
    "textarea dialog"
)
_BOILERPLATE = frozenset(("nav", "footer"))
_BOILERPLATE_ROLES = frozenset(("navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar"))
_BLOCKS = _words(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 "
    "h4 h5 h6 header hr html li main nav ol p pre section summary table tbody td tfoot th thead tr ul caption"
)
_TIGHT = frozenset(("li", "tr", "dt", "dd", "caption"))  # follow on the next line
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LINE_BREAK = "\v"
_SPACES = re.compile(r"[ \t\r\n\f]+")
_MOST_ATTRIBUTES = 10_000  # of one element: the parser compares each with those before it
# Comments, scripts and start tags as browsers tell them apart; nothing gives back, so that the search is linear.
_TAG = re.compile(
    r"<!--(?:.*?-->|.*+)"
    r"|<(?P<raw>script|style)\b[^>]*+(?:.*?</(?P=raw)|.*+)"
    r"|<[a-z][^\s/>]*+"
    r"(?:[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>\"'][^\s>]*+)?+)?+)"
    rf"{{0,{_MOST_ATTRIBUTES}}}+(?P<more>[\s/]*+[^\s/>])?+",
    re.IGNORECASE | re.DOTALL,
)


def read_html(markup: str, name: str, *, max_bytes: int) -> SourceText:
    """The page's text: blocks as paragraphs, list items as "- " lines, table rows as "a | b" lines.

    Raises `UnreadableDocumentError`.
    """
    if any(tag["more"] for tag in _TAG.finditer(markup)):
        raise UnreadableDocumentError(
            f"{name!r} has an element of more than {_MOST_ATTRIBUTES:,} attributes; expected a page that a browser "
            "shows. Save it as text, then add that."
        )
    parser = lxml_html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    data = markup.replace("\x00", "").encode("utf-8", "ignore")
    try:
        root = lxml_html.document_fromstring(data, parser=parser)
    except etree.LxmlError as error:  # no element in it
        if getattr(error, "code", None) == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError(str(error)) from error
        return SourceText("", "", "text/html")
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise UnreadableDocumentError(
            f"{name!r} nests its elements too deep ({parser.error_log[-1].message}); expected a page that a browser "
            "shows. Save it as text, then add that."
        )
    text, headings = _Page(root, TextBuilder(name, max_bytes), whole=False).read()
    if not text:
        text, headings = _Page(root, TextBuilder(name, max_bytes), whole=True).read()
    found = root.find(".//title")
    title = one_line("".join(found.itertext())) if found is not None else ""
    first = next((heading.title for heading in headings if heading.level == 1), "")
    return SourceText(title or first, text, "text/html", headings)


class _Page:
    """One walk over a page's elements."""

    def __init__(self, root: Any, out: TextBuilder, *, whole: bool) -> None:
        main = None if whole else _main(root)
        self._root = root if main is None else main
        self._skipped = (
            _SKIPPED if whole else _SKIPPED | _BOILERPLATE | (frozenset() if main is not None else {"aside"})
        )
        self._whole = whole
        self._layout = _layout_tables(self._root)
        self._out = out
        self._inline: list[str] = []
        self._cells: list[str] | None = None  # of the row that the walk is in
        self._level = 0  # of the heading that it is in
        self._pre = 0
        self._prefix = ""
        self._tight = False
        self._after_row = False
        self._tables: list[bool] = []  # of the tables that it is in: whether each holds data
        self._lists: list[int] = []  # of the lists: the last number given, -1 without numbers

    def read(self) -> tuple[str, tuple[Heading, ...]]:
        """The page's text and headings."""
        walk = etree.iterwalk(self._root, events=("start", "end"))
        for event, element in walk:
            if event == "end":
                if not self._skips(element):
                    self._end(element)
                if element is not self._root:
                    self._inline.append(element.tail or "")
            elif self._skips(element):
                walk.skip_subtree()
            else:
                self._start(element)
        self._flush()
        return self._out.finish()

    def _skips(self, element: Any) -> bool:
        if element.tag in self._skipped or not isinstance(element.tag, str):
            return True
        if element.get("hidden") is not None or element.get("aria-hidden") == "true":
            return True
        if "headerlink" in (element.get("class") or "").split():
            return True
        return not self._whole and (element.get("role") or "") in _BOILERPLATE_ROLES

    def _start(self, element: Any) -> None:
        tag = element.tag
        if tag in _BLOCKS:
            self._flush()
        if tag == "br":
            self._inline.append(_LINE_BREAK)
        elif tag == "pre":
            self._pre += 1
        elif tag == "table":
            self._tables.append(element not in self._layout)
        elif tag == "tr" and self._tables and self._tables[-1]:
            self._cells = []
        elif tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else -1)
        elif tag == "li":
            numbered = bool(self._lists) and self._lists[-1] >= 0
            if numbered:
                self._lists[-1] += 1
            self._prefix = f"{self._lists[-1]}. " if numbered else "- "
        elif tag in _HEADINGS and self._cells is None:
            self._level = _HEADINGS[tag]
        self._tight = self._tight or tag in _TIGHT
        self._inline.append(element.text or "")

    def _end(self, element: Any) -> None:
        tag = element.tag
        if tag in ("td", "th") and self._cells is not None:
            self._cells.append(one_line(self._take().replace(_LINE_BREAK, " ")))
            return
        if tag == "tr" and self._cells is not None:
            row, self._cells, self._inline = " | ".join(self._cells).strip(" |"), None, []
            self._out.add(row, tight=self._after_row)
            self._after_row = True
            return
        if tag in _BLOCKS:
            self._flush()
        if tag == "pre":
            self._pre -= 1
        elif tag == "table" and self._tables:
            self._tables.pop()
            self._after_row = False
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "li":
            self._prefix = ""
        elif tag in _HEADINGS:
            self._level = 0
        self._tight = False

    def _take(self) -> str:
        taken, self._inline = "".join(self._inline), []
        return taken

    def _flush(self) -> None:
        if self._cells is not None:
            self._inline.append(" ")  # blocks in a cell stay in its row
            return
        text = self._take()
        if self._pre:
            block = text.replace(_LINE_BREAK, "\n")
        else:
            lines = _SPACES.sub(" ", text).split(_LINE_BREAK)
            block = "\n".join(line.strip() for line in lines).strip("\n")
        if not block.strip():
            return
        self._out.add(self._prefix + block, level=self._level, tight=self._tight and not self._level)
        self._prefix, self._tight = "", False


def _main(root: Any) -> Any:
    """The element that says that it holds the page's content, if it has any text."""
    for element in root.iter():
        if element.tag == "main" or element.get("role") == "main":
            return element if any(text.strip() for text in element.itertext()) else None
    return None


def _layout_tables(root: Any) -> set[Any]:
    """The tables that hold tables, headings or code: they place things on the page, their rows are no data."""
    layout: set[Any] = set()
    tables: list[Any] = []
    for event, element in etree.iterwalk(root, events=("start", "end"), tag=("table", "pre", *_HEADINGS)):
        if event == "start":
            if tables:
                layout.add(tables[-1])
            if element.tag == "table":
                tables.append(element)
        elif element.tag == "table":
            tables.pop()
    return layout
