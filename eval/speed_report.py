"""Compares the curves of `distillation_speed.py`: how many times faster a trainer comes down to the same held-out loss.

    python eval/speed_report.py RECORD.json

compares the curves of a record again, writes it anew and prints its tables; nothing is trained. Levels are shares of
what the reference gains over the base model. Curves are compared as they were measured, where a dip that does not last
counts as reaching a loss, and smoothed, where it counts as much as the points beside it. Knows nothing about trainers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.optimize import isotonic_regression
from scipy.stats import t

from hybridqa.files import atomic_write_text
from hybridqa.provenance import commit

LEVELS = (1.0, 0.9, 0.75, 0.5)  # shares of what the reference gains over the base model
KEPT = 1e9  # weight of a point that smoothing leaves where it is
SETTLED = 3  # points of a curve that have to be low together
Result = dict[str, Any]


def main() -> None:
    """Compares and shows a record again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    path = parser.parse_args().record
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{str(path)!r}: {error}; expected a record of distillation_speed.py")
    if "runs" in record:  # not where the shares alone were measured
        compare_runs(record)
        record["compared_by"] = commit()
        atomic_write_text(path, json.dumps(record, indent=1) + "\n")
    print(table(record))


# Comparing


def lowest(points: Sequence[Result]) -> float:
    """A curve's best held-out loss."""
    return float(min(point["loss"] for point in points))


def settled(points: Sequence[Result]) -> float:
    """A curve's best mean over neighbouring points: a single dip on the way is luck."""
    losses = [point["loss"] for point in points]
    size = min(SETTLED, len(losses))
    return min(statistics.fmean(losses[first : first + size]) for first in range(len(losses) - size + 1))


def reach(points: Sequence[Result], level: float, unit: str = "seconds") -> float | None:
    """Where a curve first comes down to a loss, by straight lines between its points; None when it never does."""
    before: Result | None = None
    for point in points:
        if point["loss"] <= level:
            if before is None:
                return float(point[unit])
            share = (before["loss"] - level) / (before["loss"] - point["loss"])
            return float(before[unit] + share * (point[unit] - before[unit]))
        before = point
    return None


def compare(plain: Sequence[Result], ours: Sequence[Result]) -> Result:
    """Seconds and passes of both to the same losses: shares of the reference's gain, and the other's best."""
    base = float(plain[0]["loss"])  # before the first step the adapter adds nothing
    levels = {f"{share:.0%} of the reference's gain": base - share * (base - lowest(plain)) for share in LEVELS}
    levels["the trainer's own best"] = lowest(ours)
    found: Result = {}
    for name, level in levels.items():
        seconds = reach(plain, level), reach(ours, level)
        found[name] = {
            "loss": level,
            "reference_seconds": seconds[0],
            "trainer_seconds": seconds[1],
            "times_faster": seconds[0] / seconds[1] if seconds[0] and seconds[1] else None,
            "reference_passes": reach(plain, level, "passes"),
            "trainer_passes": reach(ours, level, "passes"),
        }
    return found


def smooth(points: Sequence[Result]) -> list[Result]:
    """The curve that never rises and lies nearest to the measured one in least squares: dips and bumps even out.

    Its first point, the base model, has no noise and stays.
    """
    weights = [KEPT] + [1.0] * (len(points) - 1)
    losses = isotonic_regression([point["loss"] for point in points], weights=weights, increasing=False).x
    return [{**point, "loss": float(loss)} for point, loss in zip(points, losses, strict=True)]


CURVES: dict[str, Callable[[Sequence[Result]], Sequence[Result]]] = {"measured": list, "smooth": smooth}


def trainers(run: Result) -> list[str]:
    """Those of a run that are compared with the reference."""
    return [
        name
        for name, trained in run.items()
        if name != "reference" and isinstance(trained, dict) and "points" in trained
    ]


def compare_runs(result: Result) -> None:
    """Compares the trainers of every run, on the curves as they were measured and smoothed; then all runs together."""
    for run in result["runs"]:
        run["compared"] = {
            kind: {
                name: compare(curve(run["reference"]["points"]), curve(run[name]["points"])) for name in trainers(run)
            }
            for kind, curve in CURVES.items()
        }
    result["summary"] = summarise(result["runs"])


def summarise(runs: Sequence[Result]) -> Result:
    """Over the seeds: how many times faster to each loss, memory, and answer tokens a second."""
    speed = {
        kind: {
            name: {
                level: ratio([run["compared"][kind][name][level]["times_faster"] for run in runs]) for level in levels
            }
            for name, levels in compared.items()
        }
        for kind, compared in runs[0]["compared"].items()
    }
    found: Result = {"times_faster": speed}
    for name in ("reference", *trainers(runs[0])):
        ends = [run[name]["points"][-1] for run in runs]
        found[name] = {
            "best_loss": statistics.mean(lowest(run[name]["points"]) for run in runs),
            "seconds": statistics.mean(end["seconds"] for end in ends),
            "passes": statistics.mean(end["passes"] for end in ends),
            "answer_tokens_per_second": statistics.mean(end["targets"] / end["seconds"] for end in ends),
            **{part: max(run[name]["memory"][part] for run in runs) for part in runs[0][name]["memory"]},
        }
    return found


def ratio(values: Sequence[float | None]) -> Result:
    """The geometric mean of seeds' ratios with a 95 % interval (Student's t on the logarithms), and how many there are.

    A seed at which one of the two never came down to the loss has no ratio: `seeds` counts those that have one.
    """
    logs = [math.log(value) for value in values if value]
    if not logs:
        return {"mean": None, "interval": None, "seeds": 0, "of": len(values)}
    middle = statistics.mean(logs)
    interval = None
    if len(logs) > 1:
        half = t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        interval = [math.exp(middle - half), math.exp(middle + half)]
    return {"mean": math.exp(middle), "interval": interval, "seeds": len(logs), "of": len(values)}


# Showing


def table(result: Result) -> str:
    """Markdown: what the trainers did, and the share of each way, where they were measured."""
    lines = compared_table(result) if "runs" in result else []
    if "ablation" in result:
        ablation = result["ablation"]
        lines += [
            "",
            f"| a pass over {ablation['pairs']} pairs | seconds | times as long | peak MB |",
            "|---|---|---|---|",
        ]
        whole = ablation["ways"]["none"]["seconds_per_pass"]
        for dtype, seconds in ablation["reference_seconds_per_pass"].items():
            lines.append(f"| the reference, {dtype} | {seconds:.2f} | {seconds / whole:.2f} | |")
        for way in ablation["ways"].values():
            if "skipped" in way:
                lines.append(f"| {way['switched_off']} | not measured: {way['skipped']} | | |")
            else:
                numbers = f"{way['seconds_per_pass']:.2f} | {way['times_as_long']:.2f}"
                lines.append(f"| {way['switched_off']} | {numbers} | {way['memory']['peak_mb']:.0f} |")
    return "\n".join(lines)


def compared_table(result: Result) -> list[str]:
    """The speed to each loss, and how the runs ended."""
    summary, runs, bounds = result["summary"], result["runs"], result["bounds"]
    lines = [
        f"Held-out loss: the base model's {bounds['base']:.3f}, with the chunk in its prompt (the teacher's) "
        f"{bounds['teacher']:.3f} nats an answer token.",
        "",
        "| curves | trainer | down to | nats | reference s | trainer s | times faster (95%) | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, speeds in summary["times_faster"].items():
        for name, levels in speeds.items():
            for level, speed in levels.items():
                rows = [run["compared"][kind][name][level] for run in runs]
                cells = [mean_of(rows, key) for key in ("loss", "reference_seconds", "trainer_seconds")]
                cells += [interval_text(speed), f"{speed['seeds']} of {speed['of']}"]
                lines.append(f"| {kind} | {name} | {level} | {' | '.join(cells)} |")
    arms = [summary[name] for name in ("reference", *trainers(runs[0]))]
    lines += ["", f"| | reference | {' | '.join(trainers(runs[0]))} |", f"|---|---|{'---|' * len(trainers(runs[0]))}"]
    for key in arms[0]:
        cells = [f"{arm[key]:.0f}" if arm[key] >= 100 else f"{arm[key]:.3g}" for arm in arms]
        lines.append(f"| {key.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


def mean_of(rows: Sequence[Result], key: str) -> str:
    """The mean of what is there."""
    values = [row[key] for row in rows if row[key] is not None]
    return f"{statistics.mean(values):.3g}" if values else "not reached"


def interval_text(speed: Result) -> str:
    """Mean and interval."""
    if speed["mean"] is None:
        return "–"
    low_high = f" ({speed['interval'][0]:.1f}-{speed['interval'][1]:.1f})" if speed["interval"] else ""
    return f"{speed['mean']:.1f}{low_high}"


if __name__ == "__main__":
    main()
