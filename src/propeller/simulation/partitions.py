"""How samples are divided among the clients of a simulation: which rows each has.

A partition is written in an experiment file or on a command line as an object (``{"kind": "dirichlet", "alpha": 0.1}``), or
as its kind alone (``"iid"``), which has the defaults. Whatever the kind:

- Each sample goes to exactly one client, and each client has at least one.
- A client's rows are in the order of the data.
- The same seed gives the same rows (``repeatable_draws`` says how far that holds).
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, ValidationError

from propeller.errors import InvalidError
from propeller.protocol.strict import NestedProblemsError, StrictMessage, find_problems, nearest_names
from propeller.protocol.wire import MAX_INTEGER, MalformedMessageError, decode_trusted
from propeller.simulation.columns import Columns, classes_of, count_samples
from propeller.simulation.repeatable_draws import Integers, RepeatableDraws

MIN_ALPHA, MAX_ALPHA = 1e-6, 1e6
"""Of a Dirichlet distribution."""

_TRIES = 50
"""How often a partition is drawn before it is given up that each client has enough samples."""

_MAX_NAMED = 10


def _whole(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise ValueError(f"{value!r:.80} is not a whole number from 0 to {MAX_INTEGER}, as 42 is")
    return value


def _positive(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_INTEGER:
        raise ValueError(f"{value!r:.80} is not a whole number of 1 or more")
    return value


def _concentration(value: Any) -> Any:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not MIN_ALPHA <= value <= MAX_ALPHA  # NaN is refused too
    ):
        raise ValueError(
            f"{value!r:.80} is not a number above 0 ({MIN_ALPHA:g} to {MAX_ALPHA:g}): "
            "0.1 makes clients very different, 100 nearly alike"
        )
    return value


_Seed = Annotated[int, BeforeValidator(_whole)]
_Positive = Annotated[int, BeforeValidator(_positive)]
_Alpha = Annotated[float, BeforeValidator(_concentration)]
_Name = Annotated[str, Field(min_length=1)]


class Partition(StrictMessage):
    """How samples are divided.

    Attributes:
        kind: which of the ways.
        seed: of what is drawn.
    """

    kind: str
    seed: _Seed = 0

    @abstractmethod
    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """The rows of each client, ascending.

        Args:
            columns: each with a row a sample; only the one that ``by`` names is looked at.
            clients: how many there are; ``column`` alone can do without.

        Raises:
            InvalidError: the samples cannot be divided so; the text names the field and what to change.
        """


class Iid(Partition):
    """Samples in a random order, cut into parts of one size (two, where it does not come out even).

    McMahan et al. 2017 (Communication-Efficient Learning of Deep Networks from Decentralized Data), section 3: "IID".
    """

    kind: Literal["iid"] = "iid"

    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """As ``Partition.divide``."""
        count = count_samples(columns)
        number = _clients(clients, count)
        owners = np.empty(count, np.int64)
        owners[RepeatableDraws(self.seed).permutation(count)] = np.arange(count) % number
        return _rows(owners, number)


class Dirichlet(Partition):
    """How much a client has of each class is drawn from a Dirichlet distribution.

    By default each class is divided by itself, by shares over the clients from ``Dir(alpha)``: clients differ in classes and in
    size. Yurochkin et al. 2019 (Bayesian Nonparametric Federated Learning of Neural Networks), section 4; Li et al. 2022
    (NIID-Bench), "distribution-based label imbalance". It is drawn again until each client has ``min_samples``.

    With ``balanced`` all clients have the same number of samples, and each draws its own mixture of classes from
    ``Dir(alpha · p)``, ``p`` the classes' shares of all samples: Hsu, Qi and Brown 2019 (Measuring the Effects of
    Non-Identical Data Distribution for Federated Visual Classification), section 3. As no sample is drawn twice and none is left,
    the last clients have what is there; a class that has run out is left out of a mixture.

    One alpha means more in the first form: there it is that of each client's share, here it is divided among the classes.

    Attributes:
        alpha: of the distribution; the smaller, the more clients differ.
        by: the column with the classes.
        min_samples: that each client has at least.
        balanced: whether clients have the same number of samples.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        "beta": "alpha",
        "concentration": "alpha",
        "label": "by",
        "column": "by",
    }

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: _Alpha = 0.5
    by: _Name = "y"
    min_samples: _Positive = 1
    balanced: bool = False

    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """As ``Partition.divide``."""
        _values, codes = classes_of(columns, self.by)
        number = _clients(clients, len(codes), self.min_samples)
        draws = RepeatableDraws(self.seed)
        of_class = np.bincount(codes)
        table = (
            self._balanced_table(draws, number, of_class)
            if self.balanced
            else self._table(draws, number, of_class)
        )
        return _rows(_deal(codes, table, draws), number)

    def _table(self, draws: RepeatableDraws, clients: int, of_class: Integers) -> Integers:
        """How many samples each client has of each class; shape [clients, classes]."""
        concentrations = np.full((len(of_class), clients), self.alpha)
        best, short = -1, clients
        for _try in range(_TRIES):
            shares = draws.dirichlets(concentrations)
            table = np.stack([_counts(*pair) for pair in zip(shares, of_class, strict=True)], axis=1)
            sizes = table.sum(axis=1)
            if sizes.min() >= self.min_samples:
                return table
            best, short = max(best, int(sizes.min())), min(short, int((sizes < self.min_samples).sum()))
        raise InvalidError(
            f"partition.alpha: in {_TRIES} draws with alpha {self.alpha:g}, {short} or more of {clients} clients had fewer than "
            f"min_samples {self.min_samples} (the smallest had at most {best}): take a larger alpha, fewer clients, or "
            "balanced true, which gives all the same number"
        )

    def _balanced_table(self, draws: RepeatableDraws, clients: int, of_class: Integers) -> Integers:
        count = int(of_class.sum())
        mixtures = draws.dirichlets(np.tile(self.alpha * of_class / count, (clients, 1)))
        left = of_class.copy()
        table = np.zeros((clients, len(of_class)), np.int64)
        for client, mixture in enumerate(mixtures):
            wanted = count // clients + (client < count % clients)
            while wanted:
                weights = np.where(left > 0, mixture, 0.0)
                if not weights.sum():  # nothing is left of any class that it has a share of
                    weights = left / left.sum()
                bounds = np.cumsum(weights)
                drawn = np.searchsorted(bounds, draws.uniforms(wanted) * bounds[-1], side="right")
                taken = np.minimum(np.bincount(drawn, minlength=len(left))[: len(left)], left)
                table[client] += taken
                left -= taken
                wanted -= int(taken.sum())
        return table


class Shards(Partition):
    """Samples sorted by class and cut into shards of one size; each client gets some of them at random.

    McMahan et al. 2017, section 3: "sort the data by digit label, divide it into 200 shards of size 300, and assign each of 100
    clients 2 shards". Where the number of samples does not come out even, some shards have one more.

    Attributes:
        per_client: how many shards a client has.
        by: the column with the classes.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {"shards": "per_client", "label": "by", "column": "by"}

    kind: Literal["shards"] = "shards"
    per_client: _Positive = 2
    by: _Name = "y"

    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """As ``Partition.divide``."""
        _values, codes = classes_of(columns, self.by)
        count = len(codes)
        number = _clients(clients, count)
        shards = number * self.per_client
        if shards > count:
            raise InvalidError(
                f"partition.per_client: {number} clients with {self.per_client} shards each need {shards} samples, and there are "
                f"{count}: take at most {count // number} for each, or fewer clients"
            )
        owner_of = np.empty(shards, np.int64)
        owner_of[RepeatableDraws(self.seed).permutation(shards)] = np.arange(shards) // self.per_client
        owners = np.empty(count, np.int64)
        owners[np.argsort(codes, kind="stable")] = owner_of[np.arange(count) * shards // count]
        return _rows(owners, number)


class Pathological(Partition):
    """Each client has samples of so many classes and of no other.

    Li et al. 2022 (Federated Learning on Non-IID Data Silos: An Experimental Study; NIID-Bench), "quantity-based label
    imbalance", ``#C = k``. The clients of a class divide its samples evenly.

    Attributes:
        classes: of a client.
        assignment: ``even``: each client takes, at random, the classes that the fewest clients before it have, so that each class is
            with as many clients as another, or one more, and none is left over. ``first-deterministic``, as in NIID-Bench: the first
            class of client *i* is class *i*, beginning anew after the last one, and its others are drawn of all; so a class can be
            with one client alone and another with many, and clients differ in size.
        by: the column with the classes.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        "per_client": "classes",
        "num_classes_per_partition": "classes",
        "class_assignment_mode": "assignment",
        "label": "by",
        "column": "by",
    }

    kind: Literal["pathological"] = "pathological"
    classes: _Positive = 2
    assignment: Literal["even", "first-deterministic"] = "even"
    by: _Name = "y"

    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """As ``Partition.divide``."""
        values, codes = classes_of(columns, self.by)
        number = _clients(clients, len(codes))
        of_class = np.bincount(codes)
        if self.classes > len(values):
            raise InvalidError(
                f"partition.classes: each client is to have {self.classes} classes, and {self.by} has {len(values)}: "
                f"take at most {len(values)}"
            )
        if number * self.classes < len(values):
            enough = -(-len(values) // number)
            raise InvalidError(
                f"partition.classes: {number} clients with {self.classes} classes each have at most {number * self.classes} of the "
                f"{len(values)} classes of {self.by}, so there are classes that no client has: take {enough} for each, or "
                f"{-(-len(values) // self.classes)} clients"
            )
        draws = RepeatableDraws(self.seed)
        has = self._owned(draws, number, len(values))
        owners = has.sum(axis=0)
        if (none := np.flatnonzero(owners == 0)).size:
            raise InvalidError(
                f"partition.assignment: no client has the class {values[none[0]]} of {self.by}: take {len(values)} clients or more, "
                'another seed, or "even"'
            )
        if (few := np.flatnonzero(of_class < owners)).size:
            at = int(few[0])
            raise InvalidError(
                f"partition.classes: {owners[at]} clients are to share the class {values[at]} of {self.by}, which has {of_class[at]} "
                "samples: take fewer clients, or fewer classes for each"
            )
        rank = np.cumsum(has, axis=0) - 1
        table = np.where(has, of_class // owners + (rank < of_class % owners), 0)
        return _rows(_deal(codes, table, draws), number)

    def _owned(self, draws: RepeatableDraws, clients: int, classes: int) -> npt.NDArray[np.bool_]:
        """Which classes each client has; shape [clients, classes]."""
        has = np.zeros((clients, classes), np.bool_)
        owners = np.zeros(classes, np.int64)
        for client in range(clients):
            first = owners if self.assignment == "even" else np.arange(classes) != client % classes
            mine = np.lexsort((draws.keys(classes), first))[: self.classes]
            has[client, mine] = True
            owners[mine] += 1
        return has


class Quantity(Partition):
    """Sizes by a draw from a Dirichlet distribution; what clients have is IID.

    Li et al. 2022 (NIID-Bench), "quantity skew": shares of all samples from ``Dir(alpha)`` over the clients. Each has
    ``min_samples`` beforehand, so that no draw is in vain.

    Attributes:
        alpha: of the distribution; the smaller, the more sizes differ.
        min_samples: that each client has at least.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {"beta": "alpha", "concentration": "alpha"}

    kind: Literal["quantity"] = "quantity"
    alpha: _Alpha = 0.5
    min_samples: _Positive = 1

    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """As ``Partition.divide``."""
        count = count_samples(columns)
        number = _clients(clients, count, self.min_samples)
        draws = RepeatableDraws(self.seed)
        (shares,) = draws.dirichlets(np.full((1, number), self.alpha))
        sizes = self.min_samples + _counts(shares, count - number * self.min_samples)
        owners = np.empty(count, np.int64)
        owners[draws.permutation(count)] = np.repeat(np.arange(number), sizes)
        return _rows(owners, number)


class Column(Partition):
    """A client for each value of a column, in the order of the values; nothing is drawn.

    Attributes:
        by: the column.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {"column": "by", "name": "by"}

    kind: Literal["column"] = "column"
    by: _Name

    def divide(self, columns: Columns, clients: int | None) -> list[Integers]:
        """As ``Partition.divide``."""
        values, codes = classes_of(columns, self.by)
        if clients is not None and clients != len(values):
            shown = ", ".join(str(value)[:40] for value in values[:_MAX_NAMED])
            more = f" and {len(values) - _MAX_NAMED} more" if len(values) > _MAX_NAMED else ""
            raise InvalidError(
                f"clients: there are to be {clients!r:.40}, but the column {self.by!r} has {len(values)} values ({shown}{more}), and each "
                f"is a client: leave clients out, or give {len(values)}"
            )
        return _rows(codes, len(values))


_KINDS: dict[str, type[Partition]] = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "pathological": Pathological,
    "quantity": Quantity,
    "column": Column,
}


def decode_partition(value: Any, where: str = "partition") -> Partition:
    """A partition from an object, its JSON text, or its kind alone.

    Raises:
        InvalidError: it is none; the text names each wrong field, beginning with ``where``, and what would be right.
    """
    if isinstance(value, str):
        value = _from_text(value, where)
    if not isinstance(value, Mapping):
        raise InvalidError(
            f'{where}: {value!r:.80} is neither a kind ({", ".join(_KINDS)}) nor an object such as {{"kind": "dirichlet", "alpha": 0.1}}'
        )
    if "kind" not in value:
        raise InvalidError(f"{where}.kind: is missing; there are {', '.join(_KINDS)}")
    kind = value["kind"]
    found = _KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        near = nearest_names(kind, _KINDS) if isinstance(kind, str) else []
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise InvalidError(f"{where}.kind: {kind!r:.80} is not known; {hint} are {', '.join(_KINDS)}")
    if found is Column and value.get("by") is None:
        raise InvalidError(
            f'{where}.by: is missing: name the column that says whose a sample is: {{"kind": "column", "by": "hospital"}}'
        )
    try:
        return found.model_validate(value)
    except ValidationError as error:
        problems = find_problems(found, error)
        raise InvalidError(
            str(NestedProblemsError([((where, *path), text) for path, text in problems]))
        ) from None


def _from_text(text: str, where: str) -> Any:
    if not text.lstrip().startswith("{"):
        return {"kind": text}
    try:
        return decode_trusted(text)
    except MalformedMessageError as error:
        raise InvalidError(f"{where}: {error}") from None


def _clients(clients: Any, count: int, min_samples: int = 1) -> int:
    if clients is None:
        raise InvalidError("clients: say how many there are; only a partition by column knows it by itself")
    if isinstance(clients, bool) or not isinstance(clients, int | np.integer) or clients < 1:
        raise InvalidError(f"clients: {clients!r:.80} is not a whole number of 1 or more")
    if clients * min_samples > count:
        each = "one sample" if min_samples == 1 else f"{min_samples} samples (min_samples)"
        possible = count // min_samples
        remedy = f"take at most {possible} clients" if possible else "give more data"
        raise InvalidError(
            f"clients: {clients} clients with at least {each} each need {clients * min_samples} samples, and there are {count}: {remedy}"
        )
    return int(clients)


def _counts(shares: npt.NDArray[np.float64], count: int) -> Integers:
    """Whole numbers in the ratio of the shares, whose sum is ``count``."""
    bounds = np.minimum(np.cumsum(shares) * count, count).astype(np.int64)
    bounds[-1] = count
    return np.diff(bounds, prepend=0)


def _deal(codes: Integers, table: Integers, draws: RepeatableDraws) -> Integers:
    """The client of each sample, where ``table`` of shape [clients, classes] says how many each has of each class."""
    clients, classes = table.shape
    owners = np.empty(len(codes), np.int64)
    by_class = np.lexsort((draws.keys(len(codes)), codes))
    owners[by_class] = np.repeat(np.tile(np.arange(clients), classes), table.T.ravel())
    return owners


def _rows(owners: Integers, clients: int) -> list[Integers]:
    """The rows of each client, where ``owners`` says which client each row has: so none is with two, and none is left out."""
    ends = np.cumsum(np.bincount(owners, minlength=clients))
    return np.split(np.argsort(owners, kind="stable").astype(np.int64, copy=False), ends[:-1])
