"""Whether a model version is what its updates make: it is made again from them, and compared bit for bit."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from propeller.coordinator.aggregation import Aggregation
from propeller.coordinator.aggregation_requests import AggregationRequest
from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.rounds import RoundRecord
from propeller.errors import ConflictError
from propeller.process.logs import get_logger
from propeller.protocol.aggregation import StrategyField
from propeller.protocol.models import updates_digest

log = get_logger("coordinator")


@dataclass(frozen=True)
class VerificationResult:
    """What came of it.

    Attributes:
        version: the version.
        digest: that the registry has of its content.
        recomputed: the digest of what its updates make.
        updates: how many there are.
        on_record: whether the coordinator's database has the round, with the same updates: else the lineage alone says which
            they were, and by how much each counts.
    """

    version: int
    digest: str
    recomputed: str
    updates: int
    on_record: bool

    @property
    def verified(self) -> bool:
        """Whether they are the same."""
        return self.digest == self.recomputed

    def to_json(self) -> dict[str, Any]:
        """The answer of ``POST /models/{version}/verify``."""
        return {
            "version": self.version,
            "verified": self.verified,
            "digest": self.digest,
            "recomputed": self.recomputed,
            "updates": self.updates,
            "on_record": self.on_record,
        }


class Verification:
    """Makes versions again."""

    def __init__(
        self,
        registry: ModelRegistryClient,
        updates: KeptUpdates,
        aggregation: Aggregation,
        find_round: Callable[[str], Awaitable[RoundRecord | None]],
    ) -> None:
        """``updates`` are those that are still there, ``find_round`` gives the rounds of this coordinator."""
        self._registry, self._updates = registry, updates
        self._aggregation, self._find_round = aggregation, find_round

    async def verify(self, version: int | str) -> VerificationResult:
        """Make a version, by its number or alias, again from what its lineage names.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: it has no lineage, or another one than its round on record; or updates of it are gone or were
                changed: the text says what to set.
            PropellerError: a service refused or does not answer.
        """
        info = await self._registry.info(version)
        number, lineage = info["version"], info.get("lineage")
        if not lineage:
            raise ConflictError(
                f"version {number} cannot be verified: it has no lineage, as it was uploaded and not made by a round"
            )
        try:
            request, on_record = await self._request(number, lineage)
        except ConflictError as error:
            raise ConflictError(f"version {number} cannot be verified: {error}") from None
        digests = [contribution.digest for contribution in request.contributions]
        missing = await self._updates.missing(digests)
        if missing:
            raise ConflictError(
                f"version {number} cannot be verified: {len(missing)} of its {len(digests)} updates were removed after the round, "
                f"or changed ({missing[0][:16]}… is the first); set COORDINATOR_KEEP_UPDATES=true for the rounds to come"
            )
        with contextlib.closing(await self._aggregation.aggregate(request)) as found:
            recomputed = await found.model.digest()
        result = VerificationResult(number, info["digest"], recomputed, len(digests), on_record)
        log.info("version recomputed", version=number, verified=result.verified, updates=len(digests))
        return result

    async def _request(self, version: int, lineage: Mapping[str, Any]) -> tuple[AggregationRequest, bool]:
        """The aggregation that a lineage tells of, and whether the database has the round.

        Raises:
            ConflictError: the lineage does not say enough, or something else than the database.
        """
        round_id = lineage.get("round")
        record = await self._find_round(round_id) if isinstance(round_id, str) else None
        expected = None if record is None else AggregationRequest.of_round(record, record.updates)
        listed = lineage.get("updates_digest")
        if listed and not lineage.get("updates"):
            if expected is None:
                raise ConflictError(
                    f"its updates are listed in the database of the coordinator that made it, and this one has no round {round_id}"
                )
            if updates_digest(expected.updates) != listed:
                raise ConflictError(
                    f"the updates that the coordinator has on record of round {round_id} are others than its lineage stands for"
                )
            lineage = {**lineage, "updates": expected.updates}
        request = AggregationRequest.of_lineage(lineage)
        if expected is None or record is None:
            return request, False
        different = [
            name
            for name, same in {
                "version": version == record.round.model_version,
                "parent": request.base_version == expected.base_version,
                "state": request.state_version == expected.state_version,
                "strategy": _same_strategy(request.strategy, expected.strategy),
                "updates": request.updates == expected.updates,
            }.items()
            if not same
        ]
        if different:
            raise ConflictError(
                f"its lineage differs from what the coordinator has on record of round {round_id}: {', '.join(different)}"
            )
        return request, True


def _same_strategy(ours: StrategyField, recorded: StrategyField) -> bool:
    """Whether two strategies are the same; a program is in a lineage by the digest that ran, whatever it was called."""
    first, second = ({"name": each} if isinstance(each, str) else dict(each) for each in (ours, recorded))
    if "program" in first and "program" in second:
        del first["program"], second["program"]
    return first == second
