"""Tables and pictures of how classes are divided."""

import sys
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from propeller.errors import InvalidError
from propeller.simulation.label_counts import LabelCounts, draw_labels, label_counts

COLUMNS = {"y": np.array(["cat", "dog", "cat", "cat", "a long name of a class"])}
PARTS = [np.array([0, 2, 3]), np.array([1, 4])]


def of(clients: int, classes: int) -> LabelCounts:
    return LabelCounts("y", np.arange(classes), np.full((clients, classes), 3))


def test_counts_of_each_class_of_each_client() -> None:
    found = label_counts(COLUMNS, PARTS)
    assert found.by == "y"
    assert found.classes.tolist() == ["a long name of a class", "cat", "dog"]
    assert found.counts.tolist() == [[0, 3, 0], [1, 0, 1]]


def test_rows_that_no_client_has_and_that_two_have_are_counted_as_they_are() -> None:
    assert label_counts({"y": np.array([0, 1])}, [np.array([1]), np.array([1])]).counts.tolist() == [
        [0, 1],
        [0, 1],
    ]


def test_what_cannot_be_counted() -> None:
    with pytest.raises(InvalidError, match="no column 'Y'; did you mean 'y'"):
        label_counts(COLUMNS, PARTS, "Y")
    with pytest.raises(InvalidError, match="parts: there are rows that are not among the 5 samples"):
        label_counts(COLUMNS, [np.array([5])])
    with pytest.raises(InvalidError, match="parts: there are none"):
        label_counts(COLUMNS, [])


def test_a_picture_in_text() -> None:
    # The largest number is 3: a third of it is the third of eight blocks.
    assert str(label_counts(COLUMNS, PARTS)).splitlines() == [
        "2 clients, 5 samples: 2 to 3 a client, of 1 to 2 of 3 classes",
        "client  a long…     cat     dog  samples",
        "     1        ·       █       ·        3",
        "     2        ▃       ·       ▃        2",
    ]


def test_a_picture_in_text_says_what_it_leaves_out() -> None:
    drawn = draw_labels(of(100, 40), width=60, lines=3).splitlines()
    assert len(drawn) == 6
    assert all(len(line) <= 60 for line in drawn[1:])
    assert drawn[0] == "100 clients, 12000 samples: 120 a client, of 40 of 40 classes"
    assert drawn[-1] == "… and 97 more clients and 26 more classes"


def test_a_picture_for_a_notebook() -> None:
    counts = label_counts(COLUMNS, PARTS)
    html = counts._repr_html_()
    assert html == counts.svg()  # nothing in it changes from one time to the next
    assert html.startswith("<svg")
    assert ET.fromstring(html).tag.endswith("svg")
    assert "<!-- a long name of a class -->" in html
    assert "of 1 to 2 of 3 classes" in html


@pytest.mark.parametrize(("classes", "legend"), [(10, True), (20, True), (30, False)])
def test_a_figure_has_a_layer_for_each_class(classes: int, legend: bool) -> None:
    (axes,) = of(4, classes).figure().axes
    assert len(axes.patches) == classes
    assert len({patch.get_facecolor() for patch in axes.patches}) == classes
    assert (axes.get_legend() is not None) is legend
    assert axes.get_xlabel() == "client"
    assert axes.get_ylim()[1] >= 3 * classes


def test_a_figure_shows_the_first_of_many_clients() -> None:
    (axes,) = of(2000, 2).figure().axes
    assert axes.get_xlabel() == "client (the first 500 of 2000)"
    assert axes.get_xlim() == (0.5, 500.5)


def test_one_client_with_one_class() -> None:
    assert draw_labels(of(1, 1)).splitlines()[0] == "1 client, 3 samples: 3 a client, of 1 of 1 class"
    assert of(1, 1).svg().startswith("<svg")


def test_without_matplotlib_a_notebook_shows_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    counts = LabelCounts("y", np.array(["<b>"]), np.array([[1]]))
    with pytest.raises(InvalidError, match="pip install matplotlib"):
        counts.figure()
    assert counts._repr_html_().startswith("<pre>")
    assert "&lt;b>" in counts._repr_html_()
