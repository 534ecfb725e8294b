"""Draws what a suite measured: recall by k, reliability, risk and coverage. Knows nothing about how it was measured.

Invariant: what is drawn is in the report; a picture adds nothing to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridqa.errors import ConfigError
from hybridqa.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (6.0, 4.0)
_COLOURS = (  # one for each way that a report can have
    "#767676",
    "#b5651d",
    "#5b7f95",
    "#1b4965",
    "#a4161a",
    "#2a9d8f",
    "#6a4c93",
    "#bc8a00",
    "#d6629a",
)


def check_plots() -> None:
    """Raises `ConfigError` where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "pictures need matplotlib, which is not installed; expected it beside hybridqa. Install 'hybridqa[plots]', "
            "or leave --plot out."
        ) from error


def draw_recall(report: Mapping[str, Any], path: Path) -> None:
    """Recall by k for each way of searching, with its interval, as a PNG."""

    def draw(axes: Axes) -> None:
        for (name, by_k), colour in zip(report["recall"].items(), _COLOURS, strict=False):
            ks = [int(k) for k in by_k]
            means = [by_k[str(k)].mean for k in ks]
            axes.plot(ks, means, marker="o", label=name, color=colour)
            lows, highs = [by_k[str(k)].low for k in ks], [by_k[str(k)].high for k in ks]
            axes.fill_between(ks, lows, highs, alpha=0.08, color=colour)
        axes.set_xlabel("k (documents)")
        axes.set_ylabel("recall@k")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower right")

    _save(draw, f"{report['documents']['file']}: {report['data']['questions']} questions", path)


def draw_reliability(report: Mapping[str, Any], path: Path) -> None:
    """How often the strongest document was right, by the evidence that it had, as a PNG."""
    bins = report["calibration"]["reliability"]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", label="as promised")
        axes.plot([one["said"] for one in bins], [one["was"] for one in bins], marker="o", color=_COLOURS[3])
        for one in bins:
            axes.annotate(
                str(one["count"]), (one["said"], one["was"]), (4, -10), textcoords="offset points", fontsize=7
            )
        axes.axvline(report["threshold"], color=_COLOURS[1], linewidth=1, label="threshold")
        axes.set_xlabel("evidence")
        axes.set_ylabel("share right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="upper left")

    error = report["calibration"]["expected_calibration_error"].mean
    _save(draw, f"{report['documents']['file']}: expected calibration error {error:.3f}", path)


def draw_risk_coverage(report: Mapping[str, Any], path: Path) -> None:
    """The share of answers that are wrong as fewer and fewer are given, the surest first, as a PNG."""

    def draw(axes: Axes) -> None:
        for (name, way), colour in zip(report["ways"].items(), _COLOURS, strict=False):
            area = way["area_under_risk_coverage"].mean
            axes.plot(way["curve"]["coverage"], way["curve"]["risk"], label=f"{name} ({area:.3f})", color=colour)
        axes.set_xlabel("coverage: share of questions answered")
        axes.set_ylabel("risk: share of answers wrong")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower right", title="area under the curve", fontsize=8)

    count = sum(report["data"]["questions"].values())
    _save(draw, f"{report['documents']['file']}: {count} questions, {report['model']['name']}", path)


def _save(draw: Any, title: str, path: Path) -> None:
    """One picture; drawn without a display, and alike wherever it is drawn."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(visible=True, alpha=0.3)
    axes.set_title(title, fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    atomic_write_bytes(path, picture.getvalue())
