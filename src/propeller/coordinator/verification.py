"""Whether a model version is what its updates make: it is made again from them, and compared bit for bit."""

import contextlib
from dataclasses import dataclass
from typing import Any

from propeller.coordinator.aggregation import Aggregation, AggregationRequest
from propeller.coordinator.clients import ModelRegistryClient
from propeller.errors import ConflictError
from propeller.process.logs import get_logger

log = get_logger("coordinator")


@dataclass(frozen=True)
class VerificationResult:
    """What came of it: the digest that the registry has of the version's content, and that of what its updates make."""

    version: int
    digest: str
    recomputed: str
    updates: int

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
        }


class Verification:
    """Makes versions again."""

    def __init__(self, registry: ModelRegistryClient, aggregation: Aggregation) -> None:
        """``aggregation`` has the updates."""
        self._registry, self._aggregation = registry, aggregation

    async def verify(self, version: int | str) -> VerificationResult:
        """Make a version, by its number or alias, again from what its lineage names.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: it has no lineage, or updates of it are gone or were changed; the text says what to set.
            PropellerError: a service refused or does not answer.
        """
        info = await self._registry.info(version)
        number, lineage = info["version"], info.get("lineage")
        if not lineage:
            raise ConflictError(
                f"version {number} cannot be verified: it has no lineage, as it was uploaded and not made by a round"
            )
        try:
            request = AggregationRequest.of_lineage(lineage)
        except ConflictError as error:
            raise ConflictError(f"version {number} cannot be verified: {error}") from None
        digests = [contribution.digest for contribution in request.contributions]
        missing = await self._aggregation.missing_updates(digests)
        if missing:
            raise ConflictError(
                f"version {number} cannot be verified: {len(missing)} of its {len(digests)} updates were removed after the round, "
                f"or changed ({missing[0][:16]}… is the first); set COORDINATOR_KEEP_UPDATES=true for the rounds to come"
            )
        with contextlib.closing(await self._aggregation.aggregate(request)) as found:
            recomputed = await found.model.digest()
        result = VerificationResult(number, info["digest"], recomputed, len(digests))
        log.info("version recomputed", version=number, verified=result.verified, updates=len(digests))
        return result
