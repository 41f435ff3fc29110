"""How many samples of each class each client has: as a table, and as pictures for a terminal, a notebook and a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.simulation.columns import Columns, classes_of
from propeller.simulation.pictures import open_figure, svg_of
from propeller.simulation.repeatable_draws import Integers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCKS = "▁▂▃▄▅▆▇█"
_MAX_CELL = 8
_MAX_LEGEND = 20
_MAX_DRAWN = 500
"""Clients with a bar: more could not be told apart."""

_COLOURS = {10: "tab10", 20: "tab20"}


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """A table of clients and classes; a notebook shows it as a picture, ``print`` as text.

    Attributes:
        by: the column that the classes are of.
        classes: its values, of shape [classes].
        counts: how many samples of each class each client has, of shape [clients, classes].
    """

    by: str
    classes: npt.NDArray[Any]
    counts: Integers

    def __str__(self) -> str:
        return draw_labels(self)

    def _repr_html_(self) -> str:
        """The picture where matplotlib is installed, else the text: what Jupyter asks for."""
        try:
            return self.svg()
        except InvalidError:
            lines = draw_labels(self).replace("&", "&amp;").replace("<", "&lt;")
            return f"<pre>{lines}</pre>"

    def summary(self) -> str:
        """Clients, samples, and the ranges of samples and classes of a client, in a line."""
        sizes, held = self.counts.sum(axis=1), (self.counts > 0).sum(axis=1)
        return (
            f"{_number(len(sizes), 'client')}, {_number(int(sizes.sum()), 'sample')}: {_range(sizes)} a client, "
            f"of {_range(held)} of {_number(len(self.classes), 'class', 'es')}"
        )

    def figure(self) -> "Figure":
        """A matplotlib figure: a bar for each client, its height the samples, a colour for each class.

        Of more than 500 clients the first 500 are shown.

        Raises:
            InvalidError: matplotlib is not installed.
        """
        figure = open_figure("a picture of labels", 8, 3.5)
        from matplotlib import colormaps
        from matplotlib.ticker import MaxNLocator

        counts = self.counts[:_MAX_DRAWN]
        clients, classes = counts.shape
        axes = figure.add_subplot()
        edges = np.arange(clients + 1) + 0.5  # clients are numbered from 1, as their names are
        colours = colormaps[next((name for most, name in _COLOURS.items() if classes <= most), "viridis")]
        below = np.zeros(clients, np.int64)
        for number, value in enumerate(self.classes):
            above = below + counts[:, number]
            colour = colours(number) if classes <= max(_COLOURS) else colours(number / (classes - 1))
            axes.stairs(
                above,
                edges,
                baseline=below,
                fill=True,
                color=colour,
                label=str(value),
            )
            below = above
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        more = f" (the first {clients} of {len(self.counts)})" if len(self.counts) > clients else ""
        axes.set_xlabel(f"client{more}")
        axes.set_ylabel("samples")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(self.summary(), fontsize="medium")
        if classes <= _MAX_LEGEND:
            axes.legend(
                title=self.by, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", reverse=True
            )
        return figure

    def svg(self) -> str:
        """The figure as SVG; the same table gives the same text.

        Raises:
            InvalidError: matplotlib is not installed.
        """
        return svg_of(self.figure())


def label_counts(
    columns: Columns, parts: Sequence[npt.NDArray[np.integer[Any]]], by: str = "y"
) -> LabelCounts:
    """How many samples of each class each client has.

    Args:
        columns: each with a row a sample.
        parts: the rows of each client.
        by: the column with the classes.

    Raises:
        InvalidError: there is no such column, it has no classes, or parts have rows that it does not.
    """
    values, codes = classes_of(columns, by)
    if not parts:
        raise InvalidError("parts: there are none: give the rows of each client")
    rows = np.concatenate([np.asarray(part, np.int64) for part in parts])
    if rows.size and not 0 <= rows.min() <= rows.max() < len(codes):
        raise InvalidError(f"parts: there are rows that are not among the {len(codes)} samples")
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cells = np.bincount(owners * len(values) + codes[rows], minlength=len(parts) * len(values))
    return LabelCounts(by, values, cells.reshape(len(parts), len(values)))


def draw_labels(counts: LabelCounts, *, width: int = 100, lines: int = 40) -> str:
    """A picture in text: a line for each client, a column for each class, blocks as high as the samples are many.

    A dot is no sample at all, a full block the largest number in the table.

    Args:
        counts: the table.
        width: the most characters of a line; classes that find no place are said to be there.
        lines: the most clients that are shown.
    """
    clients, classes = counts.counts.shape
    names = [_cut(str(value)) for value in counts.classes]
    cell = max((len(name) for name in names), default=1) + 1
    total = counts.counts.sum(axis=1)
    head, tail = len("client"), max(len(str(total.max(initial=0))), len("samples")) + 2
    shown = min(classes, max(1, (width - head - 1 - tail) // cell))
    largest = counts.counts.max(initial=1)
    text = [
        counts.summary(),
        "client " + "".join(name.rjust(cell) for name in names[:shown]) + "samples".rjust(tail),
    ]
    for client in range(min(clients, lines)):
        blocks = "".join(_block(int(n), int(largest)).rjust(cell) for n in counts.counts[client, :shown])
        text.append(f"{client + 1:>{head}} {blocks}{total[client]:>{tail}}")
    hidden = [_number(clients - lines, "more client")] if clients > lines else []
    hidden += [_number(classes - shown, "more class", "es")] if classes > shown else []
    return "\n".join([*text, f"… and {' and '.join(hidden)}"] if hidden else text)


def _block(count: int, largest: int) -> str:
    return _BLOCKS[-(-count * len(_BLOCKS) // largest) - 1] if count else "·"


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_CELL else f"{name[: _MAX_CELL - 1].rstrip()}…"


def _number(count: int, name: str, ending: str = "s") -> str:
    return f"{count} {name}{ending if count != 1 else ''}"


def _range(numbers: npt.NDArray[np.integer[Any]]) -> str:
    low, high = numbers.min(initial=np.iinfo(np.int64).max), numbers.max(initial=0)
    return f"{min(low, high)}" if low >= high else f"{low} to {high}"
