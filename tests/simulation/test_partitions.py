"""How samples are divided among clients."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import InvalidError
from propeller.simulation.partitions import Partition, decode_partition
from propeller.simulation.repeatable_draws import RepeatableDraws

DIGITS = np.random.PCG64(7).random_raw(600) % 10


def divide(partition: object, labels: npt.ArrayLike, clients: int | None) -> list[list[int]]:
    columns = {"x": np.zeros((len(np.asarray(labels)), 3), np.float32), "y": np.asarray(labels)}
    return [part.tolist() for part in decode_partition(partition).divide(columns, clients)]


def held(parts: list[list[int]], labels: npt.ArrayLike) -> list[set[object]]:
    """The classes of each client."""
    return [set(np.asarray(labels)[part].tolist()) for part in parts]


def refused(partition: object, labels: npt.ArrayLike, clients: int | None) -> str:
    with pytest.raises(InvalidError) as caught:
        divide(partition, labels, clients)
    return str(caught.value)


KINDS = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 10},
    {"kind": "dirichlet", "alpha": 0.05, "balanced": True},
    {"kind": "shards"},
    {"kind": "quantity"},
    {"kind": "pathological", "classes": 1},
    {"kind": "column", "by": "y"},
]


@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.integers(1, 12),
    st.integers(0, 2**53 - 1),
)
def test_each_sample_is_with_one_client_and_each_client_has_one(
    fields: dict[str, object], labels: list[int], clients: int, seed: int
) -> None:
    partition = {**fields, "seed": seed}
    number = None if fields["kind"] == "column" else clients
    try:
        parts = divide(partition, labels, number)
    except InvalidError:
        parts = []
        assert fields["kind"] in {"pathological", "dirichlet"} or clients * 2 > len(labels)
    if parts:
        assert len(parts) == (number or len(set(labels)))
        assert sorted(row for part in parts for row in part) == list(range(len(labels)))
        assert all(part == sorted(part) and part for part in parts)
        assert divide(partition, labels, number) == parts


@pytest.mark.parametrize("fields", KINDS[:-1], ids=str)
def test_another_seed_gives_other_rows(fields: dict[str, object]) -> None:
    assert divide({**fields, "seed": 1}, DIGITS, 20) != divide({**fields, "seed": 2}, DIGITS, 20)


@pytest.mark.parametrize(
    ("partition", "rows"),
    [
        ("iid", [[0, 1, 10, 11], [3, 5, 7, 8], [2, 4, 6, 9]]),
        ({"kind": "dirichlet", "alpha": 1, "seed": 5}, [[2, 3, 6, 9, 11], [4, 8], [0, 1, 5, 7, 10]]),
        (
            {"kind": "dirichlet", "alpha": 1, "seed": 5, "balanced": True},
            [[2, 5, 8, 11], [1, 4, 7, 10], [0, 3, 6, 9]],
        ),
        ("shards", [[1, 4, 7, 10], [0, 3, 6, 9], [2, 5, 8, 11]]),
        ({"kind": "pathological", "classes": 1}, [[2, 5, 8, 11], [0, 3, 6, 9], [1, 4, 7, 10]]),
        (
            {"kind": "pathological", "assignment": "first-deterministic"},
            [[2, 6, 9, 11], [1, 3, 4, 7, 10], [0, 5, 8]],
        ),
        ("quantity", [[8], [1], [0, 2, 3, 4, 5, 6, 7, 9, 10, 11]]),
    ],
    ids=str,
)
def test_the_rows_of_a_seed_never_change(partition: object, rows: list[list[int]]) -> None:
    # Published results depend on them. If this fails after an update of NumPy, repeatable_draws must be mended, not the rows.
    assert divide(partition, [0, 1, 2] * 4, 3) == rows


def test_iid_parts_differ_by_one_sample_at_most() -> None:
    assert [len(part) for part in divide("iid", [0] * 7, 3)] == [3, 2, 2]


def test_shards_are_cut_from_the_samples_in_the_order_of_their_class() -> None:
    # By class: rows 1 3 (class 0), 0 2 (class 1), 4 5 (class 2); three shards of two.
    parts = divide({"kind": "shards", "per_client": 1}, [1, 0, 1, 0, 2, 2], 3)
    assert sorted(parts) == [[0, 2], [1, 3], [4, 5]]


def test_shards_that_do_not_come_out_even() -> None:
    # 5 samples, 2 shards: 0 1 2 and 3 4.
    assert sorted(divide({"kind": "shards", "per_client": 1}, [0, 1, 2, 3, 4], 2)) == [[0, 1, 2], [3, 4]]


def test_two_shards_of_300_of_mnist_have_few_classes() -> None:
    labels = np.arange(60_000) % 10
    parts = divide("shards", labels, 100)
    assert {len(part) for part in parts} == {600}
    assert max(map(len, held(parts, labels))) == 2


def test_pathological_clients_have_so_many_classes_and_each_class_as_many_clients() -> None:
    parts = divide({"kind": "pathological", "classes": 3, "seed": 3}, DIGITS, 20)
    mine = held(parts, DIGITS)
    assert {len(classes) for classes in mine} == {3}
    assert {sum(number in classes for classes in mine) for number in range(10)} == {6}  # 20 · 3 / 10


@given(st.integers(10, 30), st.integers(1, 10), st.integers(0, 100))
def test_the_first_class_of_a_client_is_its_number_in_niid_bench(
    clients: int, classes: int, seed: int
) -> None:
    fields = {"kind": "pathological", "classes": classes, "assignment": "first-deterministic", "seed": seed}
    mine = held(divide(fields, DIGITS, clients), DIGITS)
    assert all(client % 10 in digits and len(digits) == classes for client, digits in enumerate(mine))


def test_other_classes_are_drawn_of_all_in_niid_bench() -> None:
    fields = {"kind": "pathological", "classes": 2, "assignment": "first-deterministic"}
    owners = np.zeros((50, 10), np.int64)
    for seed in range(50):
        for digits in held(divide({**fields, "seed": seed}, DIGITS, 10), DIGITS):
            owners[seed] += [number in digits for number in range(10)]
    assert owners.min() == 1
    assert owners.max() > 3
    assert np.allclose(
        owners.mean(axis=0), 2, atol=0.6
    )  # each drawn by 9 clients of 10 with a chance of 1/9: deviation 0.13


def test_a_class_that_no_client_drew() -> None:
    fields = {"kind": "pathological", "classes": 2, "assignment": "first-deterministic"}
    text = refused(fields, DIGITS, 5)
    assert text.startswith("partition.assignment: no client has the class ")
    assert text.endswith('take 10 clients or more, another seed, or "even"')


def test_the_clients_of_a_class_divide_it_evenly() -> None:
    # Two classes of 5 samples, each with 2 clients: 3 and 2.
    parts = divide({"kind": "pathological", "classes": 2}, [0, 1] * 5, 2)
    assert sorted([len([row for row in part if row % 2]) for part in parts]) == [2, 3]


@given(st.integers(1, 30), st.integers(1, 10), st.integers(0, 100))
def test_no_class_is_left_over_where_there_are_enough_clients(clients: int, classes: int, seed: int) -> None:
    if clients * classes >= 10:
        parts = divide({"kind": "pathological", "classes": classes, "seed": seed}, DIGITS, clients)
        assert {len(mine) for mine in held(parts, DIGITS)} == {classes}


def test_a_small_alpha_gives_each_client_nearly_one_class() -> None:
    parts = divide({"kind": "dirichlet", "alpha": 0.001, "balanced": True}, DIGITS, 6)
    first = parts[0]
    assert {len(part) for part in parts} == {100}
    most = np.bincount(np.asarray(DIGITS[first], np.int64)).max()
    assert most >= 40  # a class has about 60; the rest is of the classes next in its mixture


@pytest.mark.parametrize("balanced", [False, True])
def test_a_large_alpha_is_nearly_iid(balanced: bool) -> None:
    labels = np.arange(10_000) % 10
    parts = divide({"kind": "dirichlet", "alpha": 1e6, "balanced": balanced}, labels, 10)
    counts = np.array([np.bincount(labels[part]) for part in parts])
    # Each is 100: exactly up to rounding where classes are divided by shares, binomial where samples are drawn.
    assert abs(counts - 100).max() <= (45 if balanced else 2)


def test_min_samples_of_a_dirichlet_partition() -> None:
    parts = divide({"kind": "dirichlet", "alpha": 0.5, "min_samples": 30}, DIGITS, 10)
    assert min(map(len, parts)) >= 30


def test_quantities_differ_and_classes_do_not() -> None:
    labels = np.arange(20_000) % 10
    parts = divide({"kind": "quantity", "min_samples": 5}, labels, 10)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 5
    assert max(sizes) > 3 * sorted(sizes)[5]
    largest = np.bincount(labels[max(parts, key=len)]) / max(sizes)
    assert abs(largest - 0.1).max() < 0.02


def test_a_client_for_each_value_of_a_column() -> None:
    columns = {"x": np.zeros(5), "hospital": np.array(["b", "a", "b", "c", "a"])}
    partition = decode_partition({"kind": "column", "by": "hospital"})
    wanted = [[1, 4], [0, 2], [3]]
    assert [part.tolist() for part in partition.divide(columns, None)] == wanted
    assert [part.tolist() for part in partition.divide(columns, 3)] == wanted
    objects = {"hospital": columns["hospital"].astype(object)}
    assert [part.tolist() for part in partition.divide(objects, None)] == wanted


def test_there_may_be_as_many_clients_as_samples() -> None:
    parts = divide("iid", np.zeros(50_000), 50_000)
    assert sorted(row for (row,) in parts) == list(range(50_000))


def test_a_kind_alone_has_the_defaults_and_writes_them() -> None:
    partition = decode_partition("dirichlet")
    assert partition.to_json() == {
        "kind": "dirichlet",
        "seed": 0,
        "alpha": 0.5,
        "by": "y",
        "min_samples": 1,
        "balanced": False,
    }
    assert decode_partition(partition.to_json()) == partition
    assert decode_partition('{"kind": "shards", "per_client": 3}') == decode_partition(
        {"kind": "shards", "per_client": 3}
    )
    assert isinstance(partition, Partition)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "dirichlt",
            "partition.kind: 'dirichlt' is not known; did you mean 'dirichlet'? There are iid, dirichlet, shards, ",
        ),
        ({"kind": 3}, "partition.kind: 3 is not known; there are iid"),
        ({"alpha": 1}, "partition.kind: is missing; there are iid"),
        (
            5,
            "partition: 5 is neither a kind (iid, dirichlet, shards, pathological, quantity, column) nor an object",
        ),
        ("{", "partition: Invalid JSON"),
        ({"kind": "iid", "alpha": 1}, "partition.alpha: there is no such field; there are kind, seed"),
        (
            {"kind": "dirichlet", "alhpa": 1},
            "partition.alhpa: there is no such field; did you mean 'alpha'? There are alpha, balanced, by",
        ),
        ({"kind": "dirichlet", "beta": 1}, "partition.beta: there is no such field; did you mean 'alpha'?"),
        (
            {"kind": "dirichlet", "alpha": 0},
            "partition.alpha: 0 is not a number above 0 (1e-06 to 1e+06): 0.1 makes",
        ),
        ({"kind": "dirichlet", "alpha": -1.5}, "partition.alpha: -1.5 is not a number above 0"),
        ({"kind": "quantity", "alpha": float("nan")}, "partition.alpha: nan is not a number above 0"),
        ({"kind": "quantity", "alpha": True}, "partition.alpha: True is not a number above 0"),
        (
            {"kind": "iid", "seed": 1.5},
            "partition.seed: 1.5 is not a whole number from 0 to 9007199254740991",
        ),
        ({"kind": "iid", "seed": "1"}, "partition.seed: '1' is not a whole number"),
        ({"kind": "iid", "seed": True}, "partition.seed: True is not a whole number"),
        ({"kind": "iid", "seed": -1}, "partition.seed: -1 is not a whole number"),
        ({"kind": "shards", "per_client": 0}, "partition.per_client: 0 is not a whole number of 1 or more"),
        (
            {"kind": "pathological", "classes": 1.0},
            "partition.classes: 1.0 is not a whole number of 1 or more",
        ),
        (
            {"kind": "dirichlet", "min_samples": 0},
            "partition.min_samples: 0 is not a whole number of 1 or more",
        ),
        ({"kind": "column"}, "partition.by: is missing: name the column that says whose a sample is"),
        ({"kind": "shards", "by": 3}, "partition.by: Input should be a valid string"),
    ],
    ids=str,
)
def test_what_is_no_partition_is_refused_by_field(value: object, text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decode_partition(value)
    assert str(caught.value).startswith(text)


def test_every_wrong_field_is_named_from_where_the_partition_is() -> None:
    with pytest.raises(InvalidError) as caught:
        decode_partition({"kind": "dirichlet", "alpha": 0, "seed": "x"}, "simulation.partition")
    assert {part.split(":")[0] for part in str(caught.value).split("; ")} == {
        "simulation.partition.alpha",
        "simulation.partition.seed",
    }


def test_fewer_samples_than_clients() -> None:
    text = refused("iid", [0, 1, 2], 5)
    assert (
        text
        == "clients: 5 clients with at least one sample each need 5 samples, and there are 3: take at most 3 clients"
    )
    text = refused({"kind": "quantity", "min_samples": 4}, [0] * 10, 3)
    assert text.endswith(
        "at least 4 samples (min_samples) each need 12 samples, and there are 10: take at most 2 clients"
    )
    assert refused("iid", [], 2).endswith("take at most 0 clients") is False


@pytest.mark.parametrize("clients", [0, -3, 1.5, True, "3"])
def test_clients_that_are_no_whole_number(clients: int) -> None:
    assert refused("iid", [0, 1], clients) == f"clients: {clients!r} is not a whole number of 1 or more"


def test_clients_that_are_not_given() -> None:
    assert refused("shards", [0, 1], None).startswith("clients: say how many there are")


def test_another_number_of_clients_than_values() -> None:
    text = refused({"kind": "column", "by": "y"}, ["a", "b", "a"], 3)
    assert (
        text
        == "clients: there are to be 3, but the column 'y' has 2 values (a, b), and each is a client: leave clients out, or give 2"
    )
    assert "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more)" in refused({"kind": "column", "by": "y"}, range(15), 3)


def test_a_column_that_is_not_there() -> None:
    text = refused({"kind": "shards", "by": "Y"}, [0, 1], 2)
    assert text == "partition.by: there is no column 'Y'; did you mean 'y'? There are x, y"
    assert (
        refused({"kind": "column", "by": "hospital"}, [0], None)
        == "partition.by: there is no column 'hospital'; there are x, y"
    )


def test_a_column_that_has_no_classes() -> None:
    assert "the column 'x' is float32 of shape [2, 3]: name one with a number or a text a sample" in refused(
        {"kind": "shards", "by": "x"}, [0, 1], 2
    )
    text = refused("shards", [0, np.nan, np.nan], 1)
    assert (
        "2 of the 3 samples have no value in the column 'y' (it is NaN, the first in row 1): leave them out"
        in text
    )


def test_columns_of_different_lengths() -> None:
    with pytest.raises(InvalidError, match="must have a row for each sample; they have: x 2, y 3"):
        decode_partition("iid").divide({"x": np.zeros(2), "y": np.zeros(3)}, 2)
    with pytest.raises(InvalidError, match="they have: none"):
        decode_partition("iid").divide({}, 2)


def test_more_shards_than_samples() -> None:
    text = refused({"kind": "shards", "per_client": 4}, range(10), 3)
    assert (
        text
        == "partition.per_client: 3 clients with 4 shards each need 12 samples, and there are 10: take at most 3 for each, or fewer clients"
    )


def test_more_classes_than_there_are() -> None:
    text = refused({"kind": "pathological", "classes": 4}, [0, 1, 2] * 5, 3)
    assert text == "partition.classes: each client is to have 4 classes, and y has 3: take at most 3"


def test_a_class_that_no_client_has() -> None:
    text = refused("pathological", DIGITS, 4)
    assert text == (
        "partition.classes: 4 clients with 2 classes each have at most 8 of the 10 classes of y, so there are classes that no client "
        "has: take 3 for each, or 5 clients"
    )


def test_a_class_with_fewer_samples_than_clients() -> None:
    text = refused({"kind": "pathological", "classes": 2}, [0] * 20 + [1] * 3, 6)
    assert (
        text
        == "partition.classes: 6 clients are to share the class 1 of y, which has 3 samples: take fewer clients, or fewer classes for each"
    )


def test_a_dirichlet_partition_that_leaves_clients_without_samples() -> None:
    text = refused({"kind": "dirichlet", "alpha": 0.01}, DIGITS, 300)
    assert text.startswith("partition.alpha: in 50 draws with alpha 0.01, ")
    assert text.endswith(
        "fewer than min_samples 1 (the smallest had at most 0): take a larger alpha, fewer clients, or balanced true, which gives all the same number"
    )


@pytest.mark.parametrize("shape", [0.05, 0.5, 1.0, 3.0])
def test_gamma_variates_have_their_mean_and_variance(shape: float) -> None:
    # Both are the parameter. Five standard errors: the mean's is sqrt(a / n), the variance's about sqrt((2 a^2 + 6 a) / n).
    count = 40_000
    drawn = np.exp(RepeatableDraws(11).log_gammas(np.full(count, shape)))
    assert abs(drawn.mean() - shape) < 5 * np.sqrt(shape / count)
    assert abs(drawn.var() - shape) < 5 * np.sqrt((2 * shape**2 + 6 * shape) / count)


def test_dirichlet_variates_have_their_mean_and_never_lose_their_sum() -> None:
    shares = RepeatableDraws(3).dirichlets(np.tile([0.2, 0.3, 0.5], (20_000, 1)))
    # Variance of a share: m (1 - m) / 2, at most 0.125; five standard errors.
    assert abs(shares.mean(axis=0) - [0.2, 0.3, 0.5]).max() < 5 * np.sqrt(0.125 / 20_000)
    tiny = RepeatableDraws(3).dirichlets(np.full((100, 10), 1e-9))
    assert np.allclose(tiny.sum(axis=1), 1)
    assert np.isfinite(tiny).all()


def test_the_first_numbers_of_a_seed() -> None:
    draws = RepeatableDraws(0)
    assert draws.keys(2).tolist() == [11749869230777074271, 4976686463289251617]
    assert draws.permutation(5).tolist() == [1, 0, 4, 2, 3]
    # As NumPy's own default_rng(0).random(2), which many pages show.
    assert RepeatableDraws(0).uniforms(2).tolist() == [0.6369616873214543, 0.2697867137638703]
