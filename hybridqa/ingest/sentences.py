"""Where sentences begin and end, as offsets; for passages, citations and the trainer alike.

Knows nothing about documents or tokens. Invariant: spans are in order, do not overlap, neither begin nor end with white
space, and hold every character that is not white space. The work is linear in the text's length.
"""

from __future__ import annotations

import re

_CLOSERS = r"[\"'”’»)\]}*_」』）】》〉]"
# Each pattern starts where its kind of character starts and never gives back: no text makes it quadratic.
_CANDIDATE = re.compile(
    rf"(?<![.!?…])[.!?…]++{_CLOSERS}*+(?=\s)"  # an end, if the words around it agree
    rf"|[。！？｡]++{_CLOSERS}*+"  # an end also without a space behind
    r"|\n(?=[ \t]*+\n)"  # an empty line
    r"|\n(?=[ \t]*+(?:[-*+•‣◦|>#]|\d{1,3}[.)]|\(?[a-zA-Z][.)])[ \t])"  # a list item, a table row, a quote
    r"|\n(?=[ \t]*+(?:\||```|~~~))"
)
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘«]+$")
_FIRST_WORD = re.compile(r"\s*[\"'“‘«(\[*_]*(\w[\w'’]*|.)?")
_LINE_NUMBER = re.compile(r"(?:^|\n)[ \t]*\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})$")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S, e.g, a.m


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words(
    "mr mrs ms mx dr prof rev hon sr jr st gen col maj capt cmdr lt sgt cpl adm gov sen rep pres supt messrs mme mlle "
    "hr fr herr"
)  # a name follows
_ABBREVIATIONS = _words(
    "al approx apt ave bldg blvd ca cf dept ed eds est etc ext fig figs inc incl co corp ltd llc plc no nos nr op para "
    "pp p vol vols vs viz resp sec sect ch chap eq eqs ref refs tab tel temp univ assn bros dist div mt ft rd jan feb "
    "mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun art abb bzw evtl ggf usw vgl zb "
    "max min avg govt intl natl misc e.g i.e a.m p.m b.c a.d ph.d d.c u.s u.k e.u u.n"
)
_BEFORE_NUMBER = _words(
    "no nos nr fig figs p pp vol vols sec sect ch chap eq eqs ref refs tab art para op abb ca approx jan feb mar apr "
    "jun jul aug sep sept oct nov dec est"
)
_WORDS_TOO = _words("no art sun sat wed max min mar jan para tab ref")  # an abbreviation before a number only
_STARTERS = _words(
    "the a an this that these those it its he she they we i you there here in on at by for from with without after "
    "before when while if as since because although however but and or so then thus moreover furthermore also no not "
    "what who where why how which one some many most all each every our their his her my your"
)


def split_sentences(text: str) -> list[tuple[int, int]]:
    """The (start, end) of each sentence, list item and table row of the text."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        end = match.end()
        if match.group()[0] in ".!?…" and not _ends(text, start, match.start(), match.group(), end):
            continue
        _add_trimmed(text, start, end, spans)
        start = end
    _add_trimmed(text, start, len(text), spans)
    return spans


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends; empty (start == end) when there is nothing else in it."""
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    return start + left, max(start + left, start + len(piece.rstrip()))


def _add_trimmed(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> None:
    start, end = trimmed(text, start, end)
    if start < end:
        spans.append((start, end))


def _ends(text: str, start: int, stop: int, mark: str, end: int) -> bool:
    """Whether the punctuation `mark` at `stop` ends the sentence that began at `start`."""
    following = _FIRST_WORD.match(text[end : end + 48])
    next_word = (following.group(1) or "") if following else ""
    if next_word[:1].islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    before = text[max(start, stop - 32) : stop]
    found = _LAST_WORD.search(before)
    if found is None:
        return True
    word = found.group().lower()
    if _LINE_NUMBER.search(before):
        return False  # "1." or "a." before an item
    if word in _TITLES:
        return False
    if word in _BEFORE_NUMBER and next_word[:1].isdigit():
        return False
    if word in _WORDS_TOO:
        return True
    if word in _ABBREVIATIONS or _DOTTED.fullmatch(word) or (len(word) == 1 and found.group().isupper()):
        return next_word.lower() in _STARTERS or word == "i"
    return True
