"""Device state on disk: what each program keeps here for each experiment (docs/programs.md#device-state).

A state is a folder of its own for an experiment and a program's repository. In it is a version for each of the last two rounds, named
by the round's number: a round that is done again, because its first attempt failed or the proplet died, starts from what the
round before it left. A version is on the disk before the update that goes with it is sent, and takes its place by a rename, which
needs no space, once the coordinator has the update. One whose update went over MQTT, which has no answer, bears the id of its round
until the coordinator has said whether the update counts.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from propeller.process.files import sync_folder, write_durably
from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError
from propeller.protocol.wire import read_count
from propeller.wasm import folder_contents
from propeller.wasm.program_run import StateFolder

log = get_logger("device_states")

CLEAN_EVERY_S = 3600.0
"""How often states of experiments that are over are looked for."""

MAX_DIGITS = 9
"""The longest number of a round."""

_ABOUT_FILE = "about.json"
_NEW, _OLD = ".new-", ".old-"
"""What folders begin with that are not versions yet, and not any more."""

UpdateCounts = Callable[[str], Awaitable[bool | None]]
"""Whether this proplet's update counts in a round; None: that is not known now."""

HasEnded = Callable[[str], Awaitable[bool]]
"""Whether an experiment is known to be over."""


@dataclass(frozen=True)
class TaskState(StateFolder):
    """The state of one task: what its run is given, and where a version of it belongs.

    Attributes:
        place: of the state.
        number: of the version that the task makes.
        about: what the state is of.
    """

    place: Path
    number: int
    about: Mapping[str, str]


@dataclass(frozen=True, order=True)
class _Version:
    number: int
    made_at: int
    path: Path
    round_id: str = ""
    """Of the update that goes with it, if nobody knows whether that counts."""


@dataclass(eq=False)
class _Settling:
    """A state whose task has not left its version yet."""

    state: TaskState
    done: asyncio.Event
    round_id: str = ""


class DeviceStates:
    """The device states of one proplet, which alone uses the folder."""

    def __init__(
        self, folder: Path, max_bytes: int, max_age_s: float, update_counts: UpdateCounts | None = None
    ) -> None:
        """Remove what tasks left that an earlier process was killed with.

        Args:
            folder: made if it is missing; on the file system of the sandbox's folder.
            max_bytes: of all states together; those used longest ago make room.
            max_age_s: a state that was not used for this long is removed.
            update_counts: asks the coordinator; without it, what is not known counts.
        """
        self._folder, self._max_bytes, self._max_age_s = folder, max_bytes, max_age_s
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in (*folder.glob(f"{_NEW}*"), *folder.glob(f"*/{_OLD}*"), *folder.glob(f"{_OLD}*")):
            folder_contents.remove(left)
        self._update_counts = update_counts
        self._settling: dict[Path, list[_Settling]] = {}
        self._lock = threading.Lock()  # a commit may outlive the asyncio task that asked for it
        self._sizes = {place: _size(place) for place in self._places()}

    @property
    def max_bytes(self) -> int:
        """The bound of all states together."""
        return self._max_bytes

    def open(self, experiment_id: str, program: str, number: int | None, *, changes: bool) -> TaskState:
        """The state that a task is given.

        Args:
            experiment_id: of the task.
            program: the repository of its program, or its digest where it has none; or what else it is that keeps a state.
            number: of the round; None: the one after the last that was kept.
            changes: whether what the task leaves is kept; if not, it is given the newest version, as rounds that train at once (async)
                have numbers of their own.
        """
        about = {"experiment_id": experiment_id, "program": program}
        place = self._place(experiment_id, program)
        versions = _versions(place)
        if number is None:
            number = versions[-1].number + 1 if versions else 1
        known = [version for version in versions if version.number < number] if changes else versions
        source = known[-1].path if known else None
        _note_use(place)
        target = self._folder / f"{_NEW}{secrets.token_hex(8)}" if changes else None
        return TaskState(source, target, place, number, about)

    async def wait_settled(self, experiment_id: str, program: str) -> None:
        """Wait until no task has yet to leave its version of a state; to be called before ``open``.

        The next round may start as soon as the coordinator has the update, before the version that goes with it is on disk.
        And a version whose update does not count is removed, as soon as that is known.
        """
        place = self._place(experiment_id, program)
        for one in list(self._settling.get(place, ())):
            await one.done.wait()
        for version in _versions(place):
            counts = (
                await self._update_counts(version.round_id)
                if version.round_id and self._update_counts
                else None
            )
            if counts is not None:
                await asyncio.to_thread(self._settle, version, counts=counts)

    @contextlib.asynccontextmanager
    async def settling(self, state: TaskState) -> AsyncIterator[None]:
        """For the length of the block, from before an update is sent until its version is kept, ``wait_settled`` waits.

        What the run left is on the disk when the block begins: if there is no room, the update must not be sent.

        Raises:
            TaskError: it cannot be kept, as the disk is full or broken.
        """
        one = _Settling(state, asyncio.Event())
        waiting = self._settling.setdefault(state.place, [])
        waiting.append(one)
        try:
            await self._prepare(state)
            yield
        finally:
            one.done.set()
            waiting.remove(one)
            if not waiting:
                del self._settling[state.place]

    def doubt(self, experiment_id: str, round_id: str) -> None:
        """Remember with the versions that are about to be kept that nobody knows whether the update of a round counts."""
        for waiting in self._settling.values():
            for one in waiting:
                if one.state.about["experiment_id"] == experiment_id:
                    one.round_id = round_id

    async def commit(self, state: TaskState) -> None:
        """Keep what a run left as the state's newest version, if it left something; to be called while it is settling.

        The update counts by now. So what cannot be kept all the same is logged, and no error.
        """
        if state.target is None or not state.target.exists():
            return
        round_id = next(
            (one.round_id for one in self._settling.get(state.place, ()) if one.state is state), ""
        )
        try:
            await asyncio.to_thread(self._commit, state, state.target, round_id)
        except OSError as error:
            log.warning(
                "device state is not kept: the next round starts from the one before",
                experiment_id=state.about["experiment_id"],
                reason=error.strerror,
            )

    async def discard(self, state: TaskState) -> None:
        """Forget what a run left."""
        if state.target is not None and state.target.exists():
            await asyncio.to_thread(self._discard, state.target)

    async def clean(self, has_ended: HasEnded) -> None:
        """Remove the states of experiments that are over, and those that were not used for long."""
        oldest = time.time() - self._max_age_s
        ended: dict[str, bool] = {}
        for place in list(self._sizes):
            experiment_id, _ = _about(place)
            if experiment_id not in ended:
                ended[experiment_id] = bool(experiment_id) and await has_ended(experiment_id)
            if ended[experiment_id] or _about(place)[1] < oldest:  # it may have been used meanwhile
                log.info(
                    "device state removed", experiment_id=experiment_id, experiment_over=ended[experiment_id]
                )
                await asyncio.to_thread(self._remove_state, place)

    async def _prepare(self, state: TaskState) -> None:
        if state.target is None or not state.target.exists():
            return
        try:
            await asyncio.to_thread(self._make_durable, state, state.target)
        except OSError as error:
            raise TaskError(f"state: it cannot be kept for the next round: {error.strerror}") from error

    def _make_durable(self, state: TaskState, target: Path) -> None:
        """Write all that takes space."""
        with self._lock:
            for path, _ in folder_contents.walk(str(target)):
                _sync(Path(path))
            sync_folder(target)
            if not _note_use(state.place):
                state.place.mkdir(mode=0o700, exist_ok=True)
                write_durably(state.place / _ABOUT_FILE, json.dumps(state.about).encode())
                self._sizes[state.place] = 0

    def _commit(self, state: TaskState, target: Path, round_id: str) -> None:
        place = state.place
        with self._lock:
            versions = _versions(place)
            if versions and versions[-1].number > state.number:  # a round that others have closed long since
                folder_contents.remove(target)
                return
            before = [version for version in versions if version.number < state.number]
            doubt = f"-{round_id}" if round_id else ""
            new = place / f"{state.number}-{time.time_ns()}{doubt}"
            target.rename(new)
            sync_folder(place)
            kept = {new, *(version.path for version in before[-1:])}
            for version in _versions(place):
                if version.path not in kept:
                    _remove(version.path)
            self._sizes[place] = _size(place)
            self._make_room(place)

    def _settle(self, version: _Version, *, counts: bool) -> None:
        """Keep a version for good whose update counts, or remove it."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            if counts:
                version.path.rename(version.path.with_name(f"{version.number}-{version.made_at}"))
            else:
                log.info("device state taken back: its update does not count", round_id=version.round_id)
                _remove(version.path)

    def _discard(self, target: Path) -> None:
        with self._lock:
            folder_contents.remove(target)

    def _make_room(self, newest: Path) -> None:
        """Remove the states used longest ago until there is room; never the one in use, which alone always fits."""
        by_age = sorted(
            (place for place in self._sizes if place != newest), key=lambda place: _about(place)[1]
        )
        for place in by_age:
            if sum(self._sizes.values()) <= self._max_bytes:
                return
            log.warning(
                "device state removed: PROPLET_STATE_BYTES is reached", experiment_id=_about(place)[0]
            )
            self._sizes.pop(place, None)
            _remove(place)

    def _remove_state(self, place: Path) -> None:
        with self._lock:
            self._sizes.pop(place, None)
            _remove(place)

    def _place(self, experiment_id: str, program: str) -> Path:
        return self._folder / hashlib.sha256(f"{experiment_id}\0{program}".encode()).hexdigest()[:40]

    def _places(self) -> list[Path]:
        return [place for place in self._folder.iterdir() if place.is_dir()]


def round_number(env: Mapping[str, str]) -> int | None:
    """The number of a task's round, if it has one.

    Raises:
        TaskError: it is none.
    """
    text = env.get("FL_ROUND")
    if not text:
        return None
    number = read_count(text, MAX_DIGITS)
    if number is None:
        raise TaskError(f"FL_ROUND is {text[:80]!r}; it is a whole number of 0 or more")
    return number


def _versions(place: Path) -> list[_Version]:
    """The versions of a state, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(place):
            number, _, rest = entry.name.partition("-")
            made_at, _, round_id = rest.partition("-")
            if number.isdigit() and made_at.isdigit():
                found.append(_Version(int(number), int(made_at), Path(entry.path), round_id))
    return sorted(found)


def _about(place: Path) -> tuple[str, float]:
    """The experiment of a state (empty if that is not known), and when it was last used (0 if it is gone)."""
    file = place / _ABOUT_FILE
    try:
        return str(json.loads(file.read_text())["experiment_id"]), file.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(FileNotFoundError):
            return "", place.stat().st_mtime
        return "", 0.0  # removed, to make room or by a person


def _note_use(place: Path) -> bool:
    """Have a state count as used now; ``False`` if there is none yet."""
    try:
        os.utime(place / _ABOUT_FILE)
    except FileNotFoundError:
        return False
    return True


def _size(place: Path) -> int:
    found = folder_contents.walk(str(place))
    return sum(status.st_size for _, status in found if stat.S_ISREG(status.st_mode))


def _remove(folder: Path) -> None:
    """Remove a folder at once for everyone who looks, however long it takes."""
    old = folder.with_name(f"{_OLD}{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
        folder_contents.remove(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
