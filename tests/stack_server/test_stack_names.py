"""Names of stacks: one text for one meaning, and nothing half understood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.errors import InputError
from hybridqa.stack_server.names import (
    LEAST,
    MOST,
    ComposedStack,
    NamedPart,
    NamedStack,
    about,
    name_of,
    parse,
    read_about,
)

IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
WEIGHTS = st.floats(LEAST, MOST) | st.floats(-MOST, -LEAST)
PARTS = st.lists(
    st.builds(NamedPart, IDS, st.integers(1, 10**6), WEIGHTS),
    min_size=1,
    max_size=5,
    unique_by=lambda part: (part.module_id, part.version),
)
COLLECTIONS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1)


@given(COLLECTIONS, PARTS, st.randoms())
def test_a_name_comes_back_whatever_its_order(collection: str, parts: list[NamedPart], random: object) -> None:
    name = str(NamedStack(collection, tuple(sorted(parts))))
    assert str(parse(name)) == name
    scope, slash, listed = name.removeprefix("stack:").rpartition("/")
    shuffled = listed.split("+")
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert str(parse(f"stack:{scope}{slash}{'+'.join(shuffled)}")) == name


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("stack:b@1+a@2*0.50", "stack:a@2*0.5+b@1"),
        ("stack:default/a@1*1.0", "stack:a@1"),
        ("stack:team%20b/a@1*-2.0", "stack:team%20b/a@1*-2"),
        ("stack:a@1*1e-2", "stack:a@1*0.01"),
        ("stack:" + "0f" * 16, "stack:" + "0f" * 16),
    ],
)
def test_spellings_of_one_stack(written: str, canonical: str) -> None:
    assert str(parse(written)) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "a@1", "stack:", "stack:a", "stack:a@", "stack:a@0", "stack:a@-1", "stack:a@1+", "stack:+a@1", "stack:A@1",
        "stack:a@1*", "stack:a@1*0", "stack:a@1*nan", "stack:a@1*inf", "stack:a@1*101", "stack:a@1*2*2", "stack:a@1 ",
        "stack:a@1+a@1*2", "stack:team b/a@1", "stack:%zz/a@1", "stack:a/b/c@1", "stack:/a@1",
        "stack:" + "0F" * 16, "stack:" + "a" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_in_a_few_words(name: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(name)
    assert len(str(refused.value)) < 5500 and isinstance(refused.value, ValueError)


def test_a_composed_stack_is_asked_for_by_its_hash() -> None:
    folder = f"stack-{'0f' * 16}"
    assert parse(name_of(folder)) == ComposedStack(folder)
    for wrong in ("module@1", "stack-0f", "0f" * 16, f"stack-{'0F' * 16}"):
        with pytest.raises(InputError, match="no composed stack"):
            name_of(wrong)


def test_what_a_server_says_of_itself_is_understood() -> None:
    for rank in (16, None):
        assert read_about(f"Error 400: {about('0f' * 32, rank)} (sorry)") == ("0f" * 32, rank)
    assert read_about("The model `stack:about` does not exist.") is None
