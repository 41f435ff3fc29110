"""Pictures by matplotlib, which is installed with the extra ``simulation``: what they share, and the one of a history."""

import io
from typing import TYPE_CHECKING

from propeller.errors import InvalidError
from propeller.sdk.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {"train": "training", "evaluate": "evaluation"}
_MAX_METRICS = 6


def open_figure(what: str, width: float, height: float) -> "Figure":
    """An empty figure, in inches.

    Raises:
        InvalidError: matplotlib is not installed; ``what`` needs it.
    """
    try:
        from matplotlib import figure  # takes half a second, and nothing else needs it
    except ImportError:
        raise InvalidError(f"{what} needs matplotlib: pip install matplotlib") from None
    return figure.Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: "Figure") -> str:
    """A figure as SVG, the element alone, which can stand in a page; the same figure gives the same text."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "propeller"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def history_figure(history: History) -> "Figure":
    """The metrics of an experiment by round: a picture for each metric, a line for training and one for evaluation.

    Raises:
        InvalidError: matplotlib is not installed, or there is no metric.
    """
    names = history.metric_names()[:_MAX_METRICS]
    if not names:
        raise InvalidError("a picture of the metrics: no round measured any")
    figure = open_figure("a picture of the metrics", 8, 2.2 * ((len(names) + 1) // 2) + 0.6)
    figure.suptitle(history.id, fontsize="medium")
    for number, name in enumerate(names):
        axes = figure.add_subplot((len(names) + 1) // 2, min(2, len(names)), number + 1)
        for kind, shown in _KINDS.items():
            points = history.metric(name, kind)
            if points:
                axes.plot(*zip(*points, strict=True), label=shown, marker="." if len(points) < 40 else "")
        axes.set_title(name, fontsize="small")
        axes.set_xlabel("round", fontsize="small")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
