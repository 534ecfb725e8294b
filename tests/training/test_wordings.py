"""What pairs and texts become: every pair closed, a share with its chunk; and questions to tell knowing by."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.training.packing import shared_length
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.wordings import (
    closed_example,
    contrasts,
    first_lessons,
    lesson_pairs,
    lessons,
    sourced_example,
    text_examples,
)
from hybridqa.types import Message, ModuleKind

PAIRS = tuple(
    Pair(f"How many litres does kettle number {number} of the {where} shelf hold?", f"{number} litres", "ask", part, 0)
    for part, where in enumerate(("upper", "lower"))
    for number in range(20)
)
LESSON = Curriculum("Kettles", ("The upper shelf.", "The lower shelf."), PAIRS, (), {})


def test_every_pair_is_asked_closed_and_a_share_with_its_chunk(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer, max_model_len=512, context_tokens=300)
    lists = lessons(prompts, LESSON, PAIRS, reading=0.5, seed=0)
    closed, sourced = lists[:2], lists[2:]
    assert sorted(example.key for examples in closed for example in examples) == list(range(len(PAIRS)))
    assert 8 <= sum(map(len, sourced)) <= 32 and len(sourced) == 2
    for examples in sourced:  # one chunk each: what they share holds it
        assert len({PAIRS[example.key].passage for example in examples}) == 1
        assert shared_length([example.prompt for example in examples]) > shared_length(
            [example.prompt for example in closed[0]]
        )
    assert lists == lessons(prompts, LESSON, PAIRS, reading=0.5, seed=0)
    assert len(lessons(prompts, LESSON, PAIRS, reading=0.0, seed=0)) == 2


def test_prompt_and_answer_are_tokenised_apart_and_joined_by_ids(tokenizer: Any) -> None:
    """Joined as text, a prompt's end could melt into the answer: teacher and student would have unlike targets."""
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None  # a prompt then ends with "Answer:", with nothing to part it from what follows
    prompts = PromptBuilder(plain, max_model_len=512, context_tokens=300)
    pair = Pair("Which sign does the upper shelf bear?", ":: 45 litres", "ask", 0, 0)
    target = prompts.encode_answer(pair.answer)
    examples = [*(closed_example(prompts, pair, 0, wording) for wording in (0, 1))]
    examples.append(sourced_example(prompts, pair, 0, LESSON))
    for example in examples:
        assert example.target == target
        whole = plain.decode(example.prompt) + pair.answer
        assert (*example.prompt, *example.target[:-1]) != tuple(plain.encode(whole))  # what joining by text would give
        assert plain.decode([*example.prompt, *example.target[:-1]]) == whole


def test_a_text_is_learned_whole_in_rows_of_the_window(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer, max_model_len=512, context_tokens=300)
    for window in (512, 7, 2):
        for lesson in (LESSON, replace(LESSON, title="")):
            rows = text_examples(prompts, lesson, window=window)
            assert all(1 <= len(row.target) < window and len(row.prompt) == 1 for row in rows)
            texts = [f"{lesson.title}\n{chunk}".lstrip() for chunk in lesson.chunks]
            ids = [prompts.encode_plain(text) for text in texts]
            assert [token for row in rows for token in row.target] == [token for text in ids for token in text[1:]]
            before = [token for text in ids for token in text[:-1]]
            assert [token for row in rows for token in (*row.prompt, *row.target[:-1])] == before
    assert not text_examples(prompts, replace(LESSON, title="", chunks=("",)), window=512)


def test_the_text_is_learned_where_the_objective_has_it(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer, max_model_len=512, context_tokens=300)
    text = text_examples(prompts, LESSON, window=512)
    pairs = lessons(prompts, LESSON, PAIRS, reading=0.5, seed=0)
    behaviour = replace(LESSON, kind=ModuleKind.INSTRUCTIONS, contexts=((Message("system", "Be brief."),),))
    for recipe, times in (
        (Recipe(), 2),
        (Recipe(text=0), 0),
        (Recipe(objective="next-token"), 2),
        (Recipe(objective="next-token", text=0), 1),
        (Recipe(objective="prompt-distillation"), 0),
        (Recipe(objective="sft"), 0),
    ):
        assert first_lessons(prompts, LESSON, PAIRS, recipe, max_model_len=512) == [*pairs, *([text] * times)]
        found = first_lessons(prompts, behaviour, PAIRS, recipe, max_model_len=512)
        assert all(example.key >= 0 for examples in found for example in examples)


def test_prompt_distillation_learns_from_what_was_sampled() -> None:
    sampled = replace(LESSON, sampled=PAIRS[:3])
    assert lesson_pairs(sampled, "prompt-distillation") == PAIRS[:3]
    assert lesson_pairs(sampled, "dcd") == lesson_pairs(LESSON, "prompt-distillation") == PAIRS


def test_a_pair_of_two_chunks_is_read_with_both(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer, max_model_len=512, context_tokens=300)
    pair = Pair("Kettle 3: how much does it hold? And where is it?", "3 litres; below", "cross", 0, -1, (1,))
    lesson = replace(LESSON, pairs=(*PAIRS[:2], pair))
    read = tokenizer.decode(sourced_example(prompts, pair, 2, lesson).prompt)
    assert "[1] Kettles\nThe upper shelf." in read and "[2] Kettles\nThe lower shelf." in read
    keys = [
        [example.key for example in examples]
        for examples in lessons(prompts, lesson, lesson.pairs, reading=1.0, seed=0)
    ]
    assert keys[2:] == [[0, 1], [2]]  # what is read together begins alike


def test_wrong_questions_have_another_answer_of_the_same_kind() -> None:
    names = (("Who sings?", "Ann"), ("Who digs?", "Bob"), ("Who swims?", "Cid"), ("Who else sings?", "Ann"))
    pairs = [*PAIRS[:4], *(Pair(question, name, "ask", 0, 0) for question, name in names)]
    answers = {pair.question: pair.answer for pair in pairs}
    for pair, wrong in zip(pairs, contrasts(pairs), strict=True):
        assert len(wrong) == 2
        for question in wrong:
            assert answers[question] != pair.answer
            assert any(c.isdigit() for c in answers[question]) == any(c.isdigit() for c in pair.answer)
    assert contrasts(PAIRS[:1]) == [[]]
