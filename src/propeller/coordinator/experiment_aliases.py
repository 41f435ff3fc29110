"""The aliases of experiments, ``EXPERIMENT/latest`` and ``EXPERIMENT/best``: moved in the background, as often as needed."""

import asyncio
import contextlib
import functools
from collections.abc import Iterable

from propeller.coordinator.active_experiments import ActiveExperiment, until_done
from propeller.coordinator.experiment_store import ExperimentStore
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.errors import PropellerError
from propeller.fl.experiment import MarkBest, MarkLatest
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.process.retry import doubling, retry

log = get_logger("coordinator")

ALIAS_DELAY_S = 0.25
"""How long an alias may lag behind while an experiment runs, in seconds: short rounds are not slowed down by it."""

END_WAIT_S = 2.0
"""How long the end of an experiment waits for its aliases, in seconds; a registry that is away gets them later."""

_RETRY_DELAYS_S = doubling(0.2, 15.0)


class ExperimentAliases:
    """Moves aliases, and remembers which experiments have all theirs."""

    def __init__(
        self, registry: ModelRegistryClient, store: ExperimentStore, background: BackgroundTasks
    ) -> None:
        """Move aliases of ``registry`` in ``background``; ``store`` has the experiments."""
        self._registry, self._store, self._background = registry, store, background
        self._moving: dict[tuple[str, str], asyncio.Task[None]] = {}

    def mark(self, active: ActiveExperiment, mark: MarkLatest | MarkBest) -> None:
        """Have an alias moved, unless it is where it should be; nothing waits for it."""
        name = "latest" if isinstance(mark, MarkLatest) else "best"
        is_idle = name not in active.aliases
        if is_idle and active.moved.get(name) == mark.version:
            return
        active.aliases[name] = mark.version
        if is_idle:
            self._moving[active.record.id, name] = self._background.spawn(self._move(active, name))

    async def catch_up(self, active: ActiveExperiment, marks: Iterable[MarkLatest | MarkBest]) -> None:
        """Have all aliases moved of an experiment that is about to be over, within ``END_WAIT_S``."""
        active.is_ending.set()
        for mark in marks:
            self.mark(active, mark)
        moving = [self._moving[active.record.id, name] for name in active.aliases]
        if moving:
            await asyncio.wait(moving, timeout=END_WAIT_S)

    async def settle(self, active: ActiveExperiment) -> None:
        """Remember it once nothing is left to be done about an experiment: until then each start looks at it again."""
        record = active.record
        if record.experiment.is_settled and record.has_aliases and not active.aliases:
            await self._store.settle(record.id)

    async def _move(self, active: ActiveExperiment, name: str) -> None:
        """Move an alias to the newest version that is wanted, a moment later while the experiment runs."""
        alias = f"{active.record.id}/{name}"
        version: int | None = None
        while active.aliases[name] != version:
            if not active.record.state.is_over:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(active.is_ending.wait(), ALIAS_DELAY_S)
            version = active.aliases[name]
            if await self._set(alias, version):
                active.moved[name] = version
        del active.aliases[name], self._moving[active.record.id, name]
        await until_done(active, functools.partial(self.settle, active))

    async def _set(self, alias: str, version: int) -> bool:
        try:
            await retry(
                lambda: self._registry.set_alias(alias, version),
                delays=_RETRY_DELAYS_S,
                forever=True,
                on=lambda error: isinstance(error, PropellerError) and error.temporary,
                failed=lambda error, _delay_s: log.warning(
                    "alias is not set yet", alias=alias, reason=str(error)
                ),
            )
        except PropellerError as error:
            log.warning("alias is not set", alias=alias, version=version, reason=str(error))
            return False
        return True
