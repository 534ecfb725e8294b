"""How right an answer is, 0 to 1, against the best of its gold answers.

Knows nothing about models. Invariant: citations such as [1] are taken out first, so that no metric hangs on them, and
of gold answers too, as papers have such marks of their own; an answer equal to a gold answer scores 1 in every metric.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_CITATION = re.compile(r"\s?\[\d{1,3}(?:\s*,\s*\d{1,3})*\]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")
# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WIDE_PUNCTUATION = re.compile("[\u3000-\u3004\u3008-\u3020\u3030\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")

Metric = Callable[[str, Sequence[str]], float]


def normalise(text: str) -> str:
    """SQuAD's way of comparing answers: lower case, no (ASCII) punctuation, no articles, single spaces.

    Where a script puts no spaces between words each character is one, as in MLQA.
    """
    return " ".join(_spaced(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION))).split())


def _spaced(text: str) -> str:
    return text if text.isascii() else _UNSPACED.sub(r" \g<0> ", _WIDE_PUNCTUATION.sub(" ", text))


def without_citations(answer: str) -> str:
    """The answer less its markers such as [1] or [2, 3]."""
    return _CITATION.sub("", answer).strip()


def _bare(answer: str) -> str:
    return normalise(without_citations(answer))


def _words(answer: str) -> list[str]:
    return _WORD.findall(_spaced(without_citations(answer)).lower())


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """SQuAD's F1 over the normalised words; best over the gold answers."""
    said = _bare(answer).split()
    return max((_overlap_f1(said, _bare(gold).split()) for gold in golds), default=0.0)


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 when the normalised answer is a normalised gold answer."""
    said = _bare(answer)
    return float(any(said == _bare(gold) for gold in golds))


def contains(answer: str, golds: Sequence[str]) -> float:
    """1 when a gold answer's normalised words stand in the answer, whole and in a row."""
    said = _bare(answer)
    return float(any(said == gold or (gold != "" and f" {gold} " in f" {said} ") for gold in map(_bare, golds)))


def rouge_l(answer: str, golds: Sequence[str]) -> float:
    """The F-measure (beta 1) of the longest common subsequence of lower-case words; best over the gold answers."""
    said = _words(answer)
    return max((_subsequence_f1(said, _words(gold)) for gold in golds), default=0.0)


METRICS: dict[str, Metric] = {
    "token_f1": token_f1,
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "contains": contains,
}


def _overlap_f1(said: Sequence[str], gold: Sequence[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def _subsequence_f1(said: Sequence[str], gold: Sequence[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    row = [0] * (len(gold) + 1)  # lengths of common subsequences with the gold answer's beginnings
    for word in said:
        diagonal = 0
        for place, other in enumerate(gold, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(said) + len(gold))
