"""A module's report as rows and lines for people: what its gate measured, and what an extractor weights modules with.

Knows nothing about how a gate judges: it reads the names of what it measured. Invariant: every entry of a report is
shown, in a row or in a line, whatever its name.

A number `x` with `x_low` and `x_high` beside it is one row with its interval; so is a mapping with `low` and `high`. A
mapping with `passed` is a check with a verdict of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = tuple[str, str, str, str]  # check, value, interval, verdict
_VALUES = ("value", "mean", "gain", "difference", "effect", "estimate")  # what an interval without a name is of
_BLOCK = re.compile(r"\.(\d+)\.")


def gate_rows(gate: Any) -> list[Row]:
    """The rows of a gate's report, its verdict last; none where there is no report."""
    if not isinstance(gate, Mapping):
        return []
    rows = list(_rows(gate, ""))
    if "passed" in gate:
        rows.append(("gate", str(gate.get("reason", "")), "", _verdict(gate)))
    return rows


def loose_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Everything in the metrics that the gate's report does not say, a line an entry."""
    gate = metrics.get("gate")
    said = {"gate", "reason"} if isinstance(gate, Mapping) and gate.get("reason") == metrics.get("reason") else {"gate"}
    return [f"{name:<16} {_text(value)}" for name, value in metrics.items() if name not in said]


def weight_rows(weights: Mapping[str, float]) -> list[Row]:
    """The smallest, mean and largest weight in each of the model's layers, and over all of them."""
    groups: dict[str, list[float]] = {}
    for name, value in weights.items():
        block = _BLOCK.search(name)
        groups.setdefault(block[1] if block else name, []).append(value)
    ordered = sorted(groups.items(), key=lambda item: (not item[0].isdigit(), int(item[0]) if item[0].isdigit() else 0))
    return [_weight_row(name, values) for name, values in [*ordered, ("all", list(weights.values()))]]


def _weight_row(name: str, values: Sequence[float]) -> Row:
    return name, f"{min(values):.3f}", f"{sum(values) / len(values):.3f}", f"{max(values):.3f}"


def _rows(report: Mapping[str, Any], prefix: str) -> Iterator[Row]:
    """A row for each number, check and other entry; `prefix` is the name of the check that they belong to."""
    intervals = {name[:-4] for name in report if name.endswith("_low") and f"{name[:-4]}_high" in report}
    taken = {f"{stem}_{side}" for stem in intervals for side in ("low", "high")} | {"passed", "reason"}
    for name, value in report.items():
        label = f"{prefix}{name}".replace("_", " ")
        if name in taken:
            continue
        if isinstance(value, Mapping):
            yield from _check(value, label)
        elif _is_list_of_checks(value):
            for place, check in enumerate(value, 1):
                named = str(check.get("name") or f"{label} {place}")
                yield from _check({key: entry for key, entry in check.items() if key != "name"}, named)
        else:
            yield label, _text(value), _interval(report, _stem(name, intervals)), ""
    for stem in sorted(intervals):  # those of nothing that has a row
        if not any(_stem(name, intervals) == stem for name in report if name not in taken):
            yield f"{prefix}{stem}".replace("_", " "), "", _interval(report, stem), ""


def _check(check: Mapping[str, Any], label: str) -> Iterator[Row]:
    """A check of its own: the value that its interval and verdict belong to first, then what else it says."""
    rest = dict(check)
    if not {"passed", "low"} & check.keys():
        yield from _rows(check, f"{label} · ")
        return
    interval = ""
    main = next((name for name in _VALUES if name in rest and not isinstance(rest[name], Mapping)), None)
    for low, high in (("low", "high"), (f"{main}_low", f"{main}_high")):
        if not interval and low in rest and high in rest:
            interval = f"{_text(rest.pop(low))} to {_text(rest.pop(high))}"
    reason = str(check.get("reason", ""))
    value = _text(rest.pop(main)) if main else reason
    yield label, value if value == reason else f"{value} {reason}".strip(), interval, _verdict(check)
    yield from _rows(rest, f"{label} · ")


def _stem(name: str, intervals: set[str]) -> str | None:
    """The interval that a number belongs to: `gain` to `gain_low`, and `with_passage_gain` to `with_passage_low`."""
    if name in intervals:
        return name
    stem, _, last = name.rpartition("_")
    return stem if stem in intervals and last in _VALUES else None


def _interval(report: Mapping[str, Any], stem: str | None) -> str:
    return "" if stem is None else f"{_text(report[f'{stem}_low'])} to {_text(report[f'{stem}_high'])}"


def _verdict(report: Mapping[str, Any]) -> str:
    return "" if report.get("passed") is None else "passed" if report["passed"] else "failed"


def _is_list_of_checks(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
