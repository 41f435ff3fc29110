"""Device state on disk: what each program keeps here for each experiment (docs/programs.md#device-state).

A state is a folder of its own for an experiment and a program's repository. In it is a version for each of the last two rounds, named
by the round's number: a round that is done again, because its first attempt failed or the proplet died, starts from what the
round before it left. A version appears whole, by a rename, once the coordinator has the update that goes with it.
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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from propeller.process.files import sync_folder, write_durably
from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError
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


class DeviceStates:
    """The device states of one proplet, which alone uses the folder."""

    def __init__(self, folder: Path, max_bytes: int, max_age_s: float) -> None:
        """Remove what tasks left that an earlier process was killed with.

        Args:
            folder: made if it is missing; on the file system of the sandbox's folder.
            max_bytes: of all states together; those used longest ago make room.
            max_age_s: a state that was not used for this long is removed.
        """
        self._folder, self._max_bytes, self._max_age_s = folder, max_bytes, max_age_s
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in (*folder.glob(f"{_NEW}*"), *folder.glob(f"*/{_OLD}*"), *folder.glob(f"{_OLD}*")):
            folder_contents.remove(left)
        self._settling: dict[Path, list[asyncio.Event]] = {}
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
            changes: whether what the task leaves is kept; if not, the task is given what this very round left, too.
        """
        about = {"experiment_id": experiment_id, "program": program}
        place = self._place(experiment_id, program)
        versions = _versions(place)
        if number is None:
            number = versions[-1].number + 1 if versions else 1
        known = [version for version in versions if version.number < number + (not changes)]
        source = known[-1].path if known else None
        _note_use(place)
        target = self._folder / f"{_NEW}{secrets.token_hex(8)}" if changes else None
        return TaskState(source, target, place, number, about)

    async def wait_settled(self, experiment_id: str, program: str) -> None:
        """Wait until no task has yet to leave its version of a state; to be called before ``open``.

        The next round may start as soon as the coordinator has the update, before the version that goes with it is on disk.
        """
        for settled in list(self._settling.get(self._place(experiment_id, program), ())):
            await settled.wait()

    @contextlib.contextmanager
    def settling(self, state: TaskState) -> Iterator[None]:
        """For the length of the block, from before an update is sent until its version is kept, ``wait_settled`` waits."""
        settled = asyncio.Event()
        waiting = self._settling.setdefault(state.place, [])
        waiting.append(settled)
        try:
            yield
        finally:
            settled.set()
            waiting.remove(settled)
            if not waiting:
                del self._settling[state.place]

    async def commit(self, state: TaskState) -> None:
        """Keep what a run left as the state's newest version, if it left something.

        Raises:
            TaskError: it cannot be kept, as the disk is full or broken.
        """
        if state.target is None or not state.target.exists():
            return
        try:
            await asyncio.to_thread(self._commit, state, state.target)
        except OSError as error:
            raise TaskError(f"state: it cannot be kept for the next round: {error.strerror}") from error

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

    def _commit(self, state: TaskState, target: Path) -> None:
        place = state.place
        with self._lock:
            for path, _ in folder_contents.walk(str(target)):
                _sync(Path(path))
            sync_folder(target)
            if not _note_use(place):
                place.mkdir(mode=0o700, exist_ok=True)
                write_durably(place / _ABOUT_FILE, json.dumps(state.about).encode())
            versions = _versions(place)
            if versions and versions[-1].number > state.number:  # a round that others have closed long since
                folder_contents.remove(target)
                return
            before = [version for version in versions if version.number < state.number]
            new = place / f"{state.number}-{time.time_ns()}"
            target.rename(new)
            sync_folder(place)
            kept = {new, *(version.path for version in before[-1:])}
            for version in _versions(place):
                if version.path not in kept:
                    _remove(version.path)
            self._sizes[place] = _size(place)
            self._make_room(place)

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
    number = env.get("FL_ROUND")
    if not number:
        return None
    if not (number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS):
        raise TaskError(f"FL_ROUND is {number[:80]!r}; it is a whole number of 0 or more")
    return int(number)


def _versions(place: Path) -> list[_Version]:
    """The versions of a state, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(place):
            number, _, made_at = entry.name.partition("-")
            if number.isdigit() and made_at.isdigit():
                found.append(_Version(int(number), int(made_at), Path(entry.path)))
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
