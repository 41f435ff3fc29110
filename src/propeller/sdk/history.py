"""What happened in an experiment: every round with every participant's metrics, as plain dicts and as a table."""

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from propeller.errors import PropellerError
from propeller.protocol.history import rows_of


class History(list[dict[str, Any]]):
    """The rounds of an experiment in the order in which they were created, evaluations among them, as the coordinator keeps them.

    Each has ``number``, ``attempt``, ``kind`` (``train``, ``evaluate`` or ``wave``), ``round_id``, ``state``, ``base_version``, ``model_version``,
    ``started_at``, ``ended_at``, ``seconds``, ``metrics`` (means weighted by samples), ``num_samples``, ``updates`` (a dict a participant:
    ``proplet_id``, ``name``, ``num_samples``, ``steps``, ``metrics``, ``size``, ``bytes``, ``uncompressed_bytes``, ``compression``, ``compression_error``,
    ``received_at``), ``bytes`` that came and ``bytes_saved`` by compression, ``failures`` (``proplet_id``, ``name``, ``reason``), ``participants`` (ids), their ``names`` by id, and ``reason``.
    Rounds from before the coordinator kept names have none.

    Attributes:
        id: the experiment's.
    """

    def __init__(self, experiment_id: str, rounds: Iterable[Mapping[str, Any]]) -> None:
        """``rounds`` are those of ``GET /experiments/{id}/history``."""
        self.id = experiment_id
        super().__init__(dict(one) for one in rounds)

    def __repr__(self) -> str:
        """Shows how much there is, not all of it."""
        kinds = Counter(one["kind"] for one in self)
        names = ", ".join(self.metric_names()) or "none"
        waves = f", {kinds['wave']} waves" if kinds["wave"] else ""
        return f"<History of {self.id}: {kinds['train']} rounds, {kinds['evaluate']} evaluations{waves}; metrics: {names}>"

    def metric_names(self) -> list[str]:
        """The metrics that there are, in the order in which they first came."""
        return list(dict.fromkeys(name for one in self for name in one.get("metrics") or {}))

    def metric(self, name: str, kind: str | None = None) -> list[tuple[int, float]]:
        """A metric as pairs of round number and mean; ``kind`` narrows to ``train``, ``evaluate`` or ``wave``."""
        return [
            (one["number"], one["metrics"][name])
            for one in self
            if kind in {None, one["kind"]} and name in (one.get("metrics") or {})
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a participant and round, with the columns of ``history_csv``; a metric is ``metrics.NAME``, the round's mean ``mean.NAME``.

        ``proplet_id`` and ``name`` say who it is, ``outcome`` (``update``, ``failure``, ``missing``, or ``running``) what became of its part, and
        ``reason`` why it failed. A round without participants has one row, whose ``outcome`` and ``reason`` are the round's.
        """
        return [row for one in self for row in rows_of(one)]

    def to_pandas(self) -> Any:
        """``rows`` as a ``pandas.DataFrame``.

        Raises:
            PropellerError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise PropellerError(
                "to_pandas needs pandas: pip install pandas; rows() gives the same as a list of dicts"
            ) from None
        return pandas.DataFrame.from_records(self.rows())
