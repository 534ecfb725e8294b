"""Passages: exact, complete, whole sentences, never too long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.catalog import PassageDraft
from hybridqa.ingest.passages import split_passages
from hybridqa.ingest.sentences import split_sentences
from hybridqa.ingest.source import Heading

Counter = Callable[[Sequence[str]], list[int]]


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def joint(texts: Sequence[str]) -> list[int]:
    """Like a tokenizer with tokens for white space and for the text's ends: a text has more than its sentences."""
    return [len(text.split()) + text.count("\n") + 2 for text in texts]


def bytes_of(texts: Sequence[str]) -> list[int]:
    return [len(text.encode("utf-8", "surrogatepass")) for text in texts]


def check(text: str, drafts: list[PassageDraft], count: Counter, limit: int) -> None:
    covered = 0
    for ordinal, draft in enumerate(drafts):
        assert draft.ordinal == ordinal
        assert covered <= draft.start < draft.end <= len(text)
        assert not text[covered : draft.start].strip()
        assert text[draft.start : draft.end] == draft.text == draft.text.strip()
        assert count([draft.text])[0] <= limit or len(draft.text) == 1
        covered = draft.end
    assert not text[covered:].strip()


TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["A sentence here. ", "Short. ", "\n\n", "\n- item", "a b c d e f g h i j k l ", "\n", "日本。", " \t "]
        ),
        st.text(max_size=12),
    ),
    max_size=40,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(TEXT, st.sampled_from([words, characters, joint, bytes_of]), st.integers(3, 40), st.data())
def test_every_character_is_in_one_passage_and_no_sentence_that_fits_is_cut(
    text: str, count: Counter, limit: int, data: st.DataObject
) -> None:
    lines = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    starts = data.draw(st.lists(st.sampled_from(lines), max_size=5, unique=True))
    headings = [Heading(start, data.draw(st.integers(1, 3)), f"h{start}") for start in starts]
    drafts = split_passages(text, headings, count, limit)
    check(text, drafts, count, limit)
    if not headings:
        inner = {draft.end for draft in drafts[:-1]}
        for start, end in split_sentences(text):
            if count([text[start:end]])[0] <= limit:
                assert not any(start < cut < end for cut in inner)


def test_a_word_that_fits_is_never_cut() -> None:
    text = "a b c d e f g h " + "x" * 200 + " i j"
    assert [draft.text for draft in split_passages(text, (), words, 1)] == text.split()


def test_small_paragraphs_share_a_passage_and_whole_ones_are_kept() -> None:
    paragraphs = ["One two three four.", "Five six. Seven eight.", "Nine ten eleven twelve."]
    text = "\n\n".join(paragraphs)
    assert [draft.text for draft in split_passages(text, (), words, 12)] == [text]
    assert [draft.text for draft in split_passages(text, (), words, 7)] == paragraphs
    assert [draft.text for draft in split_passages(text, (), words, 8)] == ["\n\n".join(paragraphs[:2]), paragraphs[2]]


def test_a_small_rest_is_balanced() -> None:
    text = " ".join(f"Word{number} and more." for number in range(9))  # 27 words
    drafts = split_passages(text, (), words, 24)
    assert [len(draft.text.split()) for draft in drafts] in ([12, 15], [15, 12])


def test_headings_begin_passages_and_name_them() -> None:
    text = "Intro.\nTop\nSub one\nBody one.\n\nSub two\n\nBody two.\n\nNext\nBody three."
    headings = [
        Heading(text.index(title), level, title)
        for title, level in (("Next", 1), ("Top", 1), ("Sub one", 2), ("Sub two", 2))
    ]
    drafts = split_passages(text, headings, words, 50)
    assert [(draft.heading, draft.text) for draft in drafts] == [
        ("", "Intro."),
        ("Top > Sub one", "Top\nSub one\nBody one."),
        ("Top > Sub two", "Sub two\n\nBody two."),
        ("Next", "Next\nBody three."),
    ]


def test_a_heading_stays_with_the_beginning_of_a_long_body() -> None:
    body = " ".join(f"This is sentence number {number}." for number in range(20))
    text = f"Title\n\n{body}"
    drafts = split_passages(text, [Heading(0, 1, "Title")], words, 20)
    assert drafts[0].text.startswith("Title\n\nThis is sentence number 0.")
    assert {draft.heading for draft in drafts} == {"Title"}
    check(text, drafts, words, 20)


def test_a_heading_at_the_end_is_kept() -> None:
    text = "Body.\n\nLast"
    drafts = split_passages(text, [Heading(7, 1, "Last")], words, 20)
    assert [(draft.text, draft.heading) for draft in drafts] == [("Body.", ""), ("Last", "Last")]


def test_lines_of_a_long_block_stay_whole() -> None:
    text = "```\n" + "\n".join(f"call({number}, alpha, beta, gamma)" for number in range(40)) + "\n```"
    drafts = split_passages(text, (), words, 32)
    check(text, drafts, words, 32)
    lines = set(text.split("\n"))
    for draft in drafts:
        assert set(draft.text.split("\n")) <= lines


def test_nothing_gives_nothing() -> None:
    assert split_passages(" \n ", (), words, 5) == []
    with pytest.raises(ValueError, match="max_tokens"):
        split_passages("a", (), words, 0)


def test_a_giant_word_is_cut_even_when_the_tokenizer_calls_it_one_token() -> None:
    text = "see " + "QUJD" * 50_000 + " end."
    drafts = split_passages(text, (), words, 200)
    check(text, drafts, words, 200)
    assert max(len(draft.text) for draft in drafts) <= 200 * 8


@pytest.mark.parametrize("kind", ["prose", "one sentence", "one word", "lines"])
def test_megabytes_take_seconds(kind: str) -> None:
    chance = random.Random(1)
    vocabulary = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 9))) for _ in range(500)]
    paragraph = " ".join(
        chance.choice(vocabulary).title() + chance.choice(["", "", "", "", "", "", "", "."]) for _ in range(120)
    )
    text = {
        "prose": (paragraph + "\n\n") * (15_000_000 // len(paragraph)),
        "one sentence": (paragraph.replace(".", "") + " ") * (5_000_000 // len(paragraph)),
        "one word": "a" * 15_000_000,
        "lines": (paragraph[:60] + "\n") * (5_000_000 // 61),
    }[kind]
    begin = time.perf_counter()
    drafts = split_passages(text, (), words, 200)
    assert time.perf_counter() - begin < 30
    assert len(drafts) > 3000
    assert sum(len(draft.text) for draft in drafts) > 0.95 * len(text)


HOSTILE = {
    "one word": "a",
    "emoji": "😀",
    "no spaces": "日本語文",
    "accents": "\u0301",
    "empty lines": "\n",
    "spaces": " ",
    "dots": ".",
    "dots apart": ". ",
    "letters": "a. ",
    "abbreviations": "U.S.",
    "closers": ".)",
    "marks": "?! ",
    "dashes": "- ",
    "items": "- a\n",
    "rows": "|\n",
    "lines": "a\n",
    "wide spaces": "a\u3000",
    "long words": "a" * 300 + " ",
    "far lines": "\n" + " " * 1_000 + "x",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_no_text_is_dear(unit: str) -> None:
    """Four times the text takes not much more than four times as long."""

    def seconds(size: int) -> float:
        text = f"A {unit * (size // len(unit))} z"
        begin = time.process_time()
        drafts = split_passages(text, (), words, 200)
        taken = time.process_time() - begin
        assert sum(len(draft.text.split()) for draft in drafts) >= len(text.split())
        return taken

    short = seconds(250_000)
    assert min(seconds(1_000_000) for _ in range(2)) < 12 * short + 0.3  # garbage may be collected in either


def test_a_tokenizer_is_never_given_more_than_a_megabyte_at_a_time() -> None:
    """It needs sixty times the room."""
    longest = 0

    def counted(texts: Sequence[str]) -> list[int]:
        nonlocal longest
        longest = max(longest, sum(map(len, texts)))
        return words(texts)

    text = "Short. " * 1_000 + "a" * 3_500_000 + " " + "b c " * 300_000 + "End."
    drafts = split_passages(text, (), counted, 200)
    check(text, drafts, words, 200)
    assert 100_000 < longest < 2_000_000
