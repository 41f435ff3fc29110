"""What holds whatever happened: an experiment that has ended, and the stack that it ran on, are held against it."""

import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from faults.disks import NAMES_A_FULL_DISK
from faults.ended import Ended, Records
from faults.stack import PROPLETS, FaultyStack
from propeller.fl.round import RoundState
from support.net import eventually
from support.stack import propeller

SETTLES_S = 60.0
"""How long rounds and tasks may be open after their experiment."""


class BrokenPromiseError(AssertionError):
    """What should hold does not; the text says what, and what was found."""


@dataclass
class Promises:
    """Checks what holds, and counts what was checked.

    Attributes:
        records: what the services say.
        undisturbed: the digests of the versions that the same experiment makes when nothing happens, in order.
        checked: how often each promise was, by its words.
    """

    records: Records
    undisturbed: Sequence[str] = ()
    checked: Counter[str] = field(default_factory=Counter)

    async def check(self, stack: FaultyStack, experiment_id: str) -> None:
        """Check all of them, of an experiment that is over and of the stack.

        Raises:
            BrokenPromiseError: one does not hold.
        """
        await self._nothing_stays_open(stack, experiment_id)
        ended = await self.records.of(experiment_id)
        self._every_round_is_done(ended)
        self._every_update_counts_once(ended, stack.acknowledged)
        self._no_task_is_started_twice(ended, stack)
        self._versions_are_one_chain(ended)
        self._the_model_is_as_undisturbed(ended)
        self._audit_logs_are_whole(stack)
        self.check_logs(stack)

    def check_logs(self, stack: FaultyStack) -> None:
        """No process met what it did not expect; of a disk that is full the log has all that is known.

        Raises:
            BrokenPromiseError: one did.
        """
        for name, text in stack.logs().items():
            unexpected = [
                line
                for line in text.splitlines()
                if "Traceback" in line and not _is_of_full_disk(stack, line)
            ]
            at = text.find(unexpected[0]) if unexpected else 0
            self._hold("no traceback in the logs", not unexpected, name, text[max(0, at - 500) :][:3000])

    def _hold(self, promise: str, holds: bool, *found: object) -> None:
        if not holds:
            raise BrokenPromiseError(f"{promise}: {' '.join(map(str, found))}")
        self.checked[promise] += 1

    async def _nothing_stays_open(self, stack: FaultyStack, experiment_id: str) -> None:
        async def open_rounds() -> list[str]:
            rounds = (await stack.get("coordinator", f"/experiments/{experiment_id}/history"))["rounds"]
            return [one["round_id"] for one in rounds if not RoundState(one["state"]).is_over]

        async def unfinished_tasks() -> list[Any]:
            return [one for one in await self.records.tasks(experiment_id) if not one.get("finish_time")]

        await self._none_is_left("no round stays open", open_rounds)
        await self._none_is_left("no task stays open", unfinished_tasks)

    async def _none_is_left(self, promise: str, find: Callable[[], Awaitable[list[Any]]]) -> None:
        left: list[Any] = []

        async def are_done() -> bool:
            left[:] = await find()
            return not left

        with contextlib.suppress(AssertionError):  # it says less
            await eventually(are_done, SETTLES_S)
        self._hold(promise, not left, left)

    def _every_round_is_done(self, ended: Ended) -> None:
        numbers = [one["number"] for one in ended.completed]
        told = {name: ended.detail[name] for name in ("id", "state", "done", "reason")}
        self._hold(
            "an experiment ends with all its rounds",
            told["state"] == "completed" and numbers == list(range(1, ended.detail["rounds"] + 1)),
            (told, numbers),
        )

    def _every_update_counts_once(self, ended: Ended, acknowledged: Mapping[tuple[str, str], int]) -> None:
        promise = "an acknowledged update counts once, or is named as left out"
        rounds = {one["round_id"]: one for one in ended.rounds}
        for round_id, proplet_id in acknowledged:
            if (one := rounds.get(round_id)) is None:
                continue  # of another experiment
            counted = [each["proplet_id"] for each in one["updates"]].count(proplet_id)
            left_out = proplet_id in [each["proplet_id"] for each in one["failures"]]
            self._hold(promise, counted == 1 or (counted == 0 and left_out), (proplet_id, one))
        for one in ended.completed:
            named = [each["proplet_id"] for each in ended.lineages[one["model_version"]]["updates"]]
            left_out_of = {each["proplet_id"] for each in one["failures"]}
            counted_in = {each["proplet_id"] for each in one["updates"]}
            self._hold(
                "a version's lineage names the updates of its round, each once",
                len(named) == len(set(named)) and set(named) == counted_in - (left_out_of - set(named)),
                (named, one),
            )

    def _no_task_is_started_twice(self, ended: Ended, stack: FaultyStack) -> None:
        tasks = Counter((one["env"]["ROUND_ID"], one["proplet_id"]) for one in ended.tasks)
        twice = {key: count for key, count in tasks.items() if count > 1}
        self._hold("a device has one task in a round", not twice, twice)
        logs = stack.logs()
        supervised = list(_entries(logs["up"], "process ended"))
        ids = {one["id"] for one in ended.tasks}
        for name in PROPLETS:
            ran = Counter(
                task for one in _entries(logs[name], "Executing task") if (task := one["task_id"]) in ids
            )
            ends = sum(one.get("name") == name for one in supervised)
            allowed = ends + stack.starts
            self._hold(
                "a device runs a task once, and again only after its own end",
                sum(count - 1 for count in ran.values()) < allowed,
                (name, ran.most_common(3), allowed),
            )

    def _versions_are_one_chain(self, ended: Ended) -> None:
        versions = sorted(ended.models)
        self._hold("versions have no gap", versions == list(range(len(versions))), versions)
        base = ended.detail["spec"]["model"]["version"]
        for one in ended.completed:
            lineage = ended.lineages[one["model_version"]]
            self._hold(
                "the versions of an experiment are one chain",
                one["base_version"] == lineage["parent"] == base and lineage["round"] == one["round_id"],
                (one["round_id"], one["base_version"], base, lineage),
            )
            base = one["model_version"]
        made = [
            version
            for version, lineage in ended.lineages.items()
            if lineage.get("experiment") == ended.detail["id"]
        ]
        self._hold(
            "a round makes one version",
            len(made) == len(ended.completed),
            (made, len(ended.completed)),
        )

    def _the_model_is_as_undisturbed(self, ended: Ended) -> None:
        """As far as no round went without a device, as what follows is then another model."""
        for one, digest, expected in zip(ended.completed, ended.made, self.undisturbed, strict=False):
            if len(ended.lineages[one["model_version"]]["updates"]) < len(PROPLETS):
                return
            self._hold(
                "a model of all devices is that of an undisturbed run",
                digest == expected,
                (one["round_id"], digest, expected),
            )

    def _audit_logs_are_whole(self, stack: FaultyStack) -> None:
        done = propeller("audit", "verify", "--state", str(stack.folder))
        self._hold("the audit logs verify", done.returncode == 0, done.stdout + done.stderr)


def _entries(text: str, message: str) -> Iterator[dict[str, Any]]:
    """The lines of a log that say this; one that a full disk took in part says nothing."""
    for line in text.splitlines():
        if message in line:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _is_of_full_disk(stack: FaultyStack, line: str) -> bool:
    return bool(stack.disks) and any(name in line for name in NAMES_A_FULL_DISK)
