"""Device states on disk: versions by round, bounded, gone when the experiment is over."""

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from propeller.proplet import device_states
from propeller.proplet.device_states import DeviceStates, TaskState
from propeller.proplet.errors import TaskError

PROGRAM = "registry.test/mine"


def opened(folder: Path, max_bytes: int = 10_000, max_age_s: float = 1000) -> DeviceStates:
    return DeviceStates(folder / "states", max_bytes, max_age_s)


def leave(state: TaskState, text: str) -> None:
    """Do what the sandbox does when a run has succeeded."""
    assert state.target is not None
    state.target.mkdir()
    (state.target / "n").write_text(text)


def found(state: TaskState) -> str | None:
    """What a task is given."""
    return None if state.source is None else (state.source / "n").read_text()


async def keep(states: DeviceStates, number: int | None, text: str, experiment: str = "e-1") -> None:
    state = states.open(experiment, PROGRAM, number, changes=True)
    leave(state, text)
    async with states.settling(state):
        await states.commit(state)


def given(
    states: DeviceStates, number: int | None, experiment: str = "e-1", *, evaluates: bool = False
) -> str | None:
    return found(states.open(experiment, PROGRAM, number, changes=not evaluates))


async def never(_experiment: str) -> bool:
    return False


async def test_a_round_gets_what_the_one_before_left(tmp_path: Path) -> None:
    states = opened(tmp_path)
    assert given(states, 1) is None
    await keep(states, 1, "one")
    assert given(states, 2) == "one"
    await keep(states, 2, "two")
    assert given(states, 3) == "two"
    assert given(states, 7) == "two"  # it was not chosen for the rounds between
    assert given(opened(tmp_path), 3) == "two"  # after a restart


async def test_a_round_that_is_done_again_starts_from_the_one_before(tmp_path: Path) -> None:
    """As when the first attempt failed, or the proplet was killed before it could report."""
    states = opened(tmp_path)
    await keep(states, 1, "one")
    await keep(states, 2, "two")
    assert given(states, 2) == "one"
    await keep(states, 2, "two again")
    assert given(states, 3) == "two again"
    assert given(states, 2) == "one"


async def test_an_evaluation_gets_what_its_round_left_and_changes_nothing(tmp_path: Path) -> None:
    states = opened(tmp_path)
    await keep(states, 1, "one")
    await keep(states, 2, "two")
    assert given(states, 2, evaluates=True) == "two"
    assert states.open("e-1", PROGRAM, 2, changes=False).target is None
    # Of an asynchronous experiment, whose waves have numbers of their own.
    assert given(states, 1, evaluates=True) == "two"


async def test_the_next_round_waits_for_what_the_last_one_is_about_to_leave(tmp_path: Path) -> None:
    """The coordinator starts it as soon as it has the update, which may be before the disk has the state."""
    states = opened(tmp_path)
    await keep(states, 1, "one")
    second = states.open("e-1", PROGRAM, 2, changes=True)
    leave(second, "two")

    async def third() -> str | None:
        await states.wait_settled("e-1", PROGRAM)
        return given(states, 3)

    async with states.settling(second):
        waiting = asyncio.create_task(third())
        await states.wait_settled("e-2", PROGRAM)  # others wait for nothing
        await asyncio.sleep(0)
        assert not waiting.done()
        await states.commit(second)
    assert await waiting == "two"
    await states.wait_settled("e-1", PROGRAM)


async def test_a_late_task_of_a_round_that_is_over_changes_nothing(tmp_path: Path) -> None:
    states = opened(tmp_path)
    await keep(states, 1, "one")
    late = states.open("e-1", PROGRAM, 2, changes=True)
    await keep(states, 3, "three")
    leave(late, "two")
    await states.commit(late)
    assert given(states, 4) == "three"
    assert not list((tmp_path / "states").glob(".new-*"))


async def test_tasks_without_a_round_number_follow_one_another(tmp_path: Path) -> None:
    states = opened(tmp_path)
    await keep(states, None, "one")
    await keep(states, None, "two")
    assert given(states, None) == "two"
    assert given(states, None, evaluates=True) == "two"


async def test_two_versions_are_kept(tmp_path: Path) -> None:
    states = opened(tmp_path)
    for number in range(1, 20):
        await keep(states, number, "x")
    names = sorted(place.name.partition("-")[0] for place in (tmp_path / "states").glob("*/[0-9]*"))
    assert names == ["18", "19"]


async def test_a_failed_task_leaves_nothing(tmp_path: Path) -> None:
    states = opened(tmp_path)
    await keep(states, 1, "one")
    state = states.open("e-1", PROGRAM, 2, changes=True)
    leave(state, "two")
    await states.discard(state)
    assert given(states, 3) == "one"
    unused = states.open("e-1", PROGRAM, 2, changes=True)
    await states.commit(unused)
    await states.discard(unused)
    assert given(states, 3) == "one"
    assert len(list((tmp_path / "states").iterdir())) == 1


async def test_it_is_private_to_experiment_and_program(tmp_path: Path) -> None:
    states = opened(tmp_path)
    await keep(states, 1, "one")
    assert given(states, 2, "e-2") is None
    assert states.open("e-1", "registry.test/other", 2, changes=True).source is None
    for place in (tmp_path / "states").iterdir():
        assert place.stat().st_mode & 0o077 == 0


async def test_killed_at_any_moment_the_next_process_finds_a_whole_version(tmp_path: Path) -> None:
    """What a task left and was not taken yet, and a version whose removal was under way, are removed at the start."""
    states = opened(tmp_path)
    await keep(states, 1, "one")
    leave(states.open("e-1", PROGRAM, 2, changes=True), "two")
    (place,) = [place for place in (tmp_path / "states").iterdir() if not place.name.startswith(".")]
    (version,) = place.glob("1-*")
    (place / ".old-a").mkdir()
    (place / ".old-a" / "part").write_text("x")
    states = opened(tmp_path)
    assert given(states, 2) == "one"
    assert sorted(entry.name for entry in place.iterdir()) == sorted([version.name, "about.json"])
    assert [entry.name for entry in (tmp_path / "states").iterdir()] == [place.name]


COMMITTING = """
import asyncio, sys
from pathlib import Path
from propeller.proplet.device_states import DeviceStates
states = DeviceStates(Path(sys.argv[1]), 10_000_000, 1000)
number = int(sys.argv[2])

async def keep(state):
    async with states.settling(state):
        await states.commit(state)

while True:
    number += 1
    state = states.open("e-1", "registry.test/mine", number, changes=True)
    state.target.mkdir()
    for name in ("n", "m"):
        (state.target / name).write_text(str(number))
    asyncio.run(keep(state))
    print(number, flush=True)
"""


async def test_a_process_killed_while_it_commits_leaves_the_last_version_or_the_next(tmp_path: Path) -> None:
    """Wherever the kill hits, what is found is whole, and nothing is left beside it."""
    draw, said = random.Random(0), 0
    for _ in range(6):
        command = [sys.executable, "-c", COMMITTING, str(tmp_path / "states"), str(said)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(draw.randrange(1, 30)):
                said = int(child.stdout.readline())
            time.sleep(draw.random() / 500)  # to hit it anywhere in what it does
            child.kill()
            said = max([said, *map(int, child.stdout.read().split())])
        state = opened(tmp_path, 10_000_000).open("e-1", PROGRAM, None, changes=True)
        assert state.source is not None
        assert found(state) == (state.source / "m").read_text()
        assert int(found(state) or 0) in {said, said + 1}
        said = int(found(state) or 0)
        names = [entry.name for entry in state.place.iterdir()]
        assert [name for name in names if not name[0].isdigit()] == ["about.json"]
        assert len(list((tmp_path / "states").iterdir())) == 1


async def test_all_together_are_bounded(tmp_path: Path) -> None:
    """Those used longest ago make room; the one in use stays."""
    states = opened(tmp_path, max_bytes=2000)
    for number, experiment in enumerate(("e-1", "e-2", "e-3")):
        await keep(states, 1, "x" * 800, experiment)
        about = states.open(experiment, PROGRAM, 2, changes=True).place / "about.json"
        os.utime(about, (number, number))
    kept = [name for name in ("e-1", "e-2", "e-3") if given(states, 2, name) is not None]
    assert kept == ["e-2", "e-3"]
    states = opened(tmp_path, max_bytes=2000)
    await keep(states, 2, "x" * 800, "e-2")  # its second version
    assert [name for name in ("e-2", "e-3") if given(states, 3, name) is not None] == ["e-2"]


async def test_experiments_that_are_over_leave_nothing(tmp_path: Path) -> None:
    states = opened(tmp_path)
    for experiment in ("e-1", "e-2"):
        await keep(states, 1, "one", experiment)
    asked: list[str] = []

    async def has_ended(experiment: str) -> bool:
        asked.append(experiment)
        return experiment == "e-1"

    await states.clean(has_ended)
    assert sorted(asked) == ["e-1", "e-2"]
    assert (given(states, 2, "e-1"), given(states, 2, "e-2")) == (None, "one")


async def test_what_is_not_used_for_long_is_removed(tmp_path: Path) -> None:
    states = opened(tmp_path, max_age_s=100)
    for experiment in ("e-1", "e-2"):
        await keep(states, 1, "one", experiment)
    about = states.open("e-1", PROGRAM, 2, changes=True).place / "about.json"
    os.utime(about, (time.time() - 101,) * 2)
    await states.clean(never)
    assert (given(states, 2, "e-1"), given(states, 2, "e-2")) == (None, "one")


async def test_an_evaluation_is_a_use(tmp_path: Path) -> None:
    states = opened(tmp_path, max_age_s=100)
    await keep(states, 1, "one")
    os.utime(states.open("e-1", PROGRAM, 1, changes=False).place / "about.json", (time.time() - 101,) * 2)
    assert given(states, 1, evaluates=True) == "one"
    await states.clean(never)
    assert given(states, 2) == "one"


async def test_a_state_that_is_used_while_the_coordinator_is_asked_stays(tmp_path: Path) -> None:
    states = opened(tmp_path, max_age_s=100)
    await keep(states, 1, "one")
    os.utime(states.open("e-1", PROGRAM, 2, changes=True).place / "about.json", (time.time() - 101,) * 2)

    async def used_meanwhile(_experiment: str) -> bool:
        await keep(states, 2, "two")
        return False

    await states.clean(used_meanwhile)
    assert given(states, 3) == "two"


async def test_a_state_that_a_person_removed_is_in_nobodys_way(tmp_path: Path) -> None:
    states = opened(tmp_path)
    for experiment in ("e-1", "e-2"):
        await keep(states, 1, "one", experiment)
    shutil.rmtree(states.open("e-1", PROGRAM, 2, changes=True).place)
    await keep(states, 2, "two", "e-2")
    await states.clean(never)
    assert (given(states, 2, "e-1"), given(states, 3, "e-2")) == (None, "two")


async def test_a_full_disk_is_noticed_before_the_update_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = opened(tmp_path)
    await keep(states, 1, "one")
    state = states.open("e-1", PROGRAM, 2, changes=True)
    leave(state, "two")
    with monkeypatch.context() as patched:
        patched.setattr(device_states, "sync_folder", refuse)
        with pytest.raises(TaskError, match="state: it cannot be kept for the next round: No space left"):
            async with states.settling(state):
                pytest.fail("the update must not be sent")
    assert given(states, 3) == "one"
    # Once the update counts, the task has succeeded, whatever becomes of the state.
    async with states.settling(state):
        monkeypatch.setattr(Path, "rename", refuse)
        await states.commit(state)
    assert given(states, 3) == "one"


async def test_a_version_whose_update_does_not_count_is_taken_back(tmp_path: Path) -> None:
    """As its update went over MQTT, which has no answer; the coordinator is asked when the next task starts."""
    told: dict[str, bool | None] = {}

    async def counts(round_id: str) -> bool | None:
        return told.get(round_id)

    for answer, left in ((None, "two"), (False, "one"), (True, "two")):
        folder = tmp_path / str(answer)
        states = DeviceStates(folder, 10_000, 1000, counts)
        await keep(states, 1, "one")
        state = states.open("e-1", PROGRAM, 2, changes=True)
        leave(state, "two")
        async with states.settling(state):
            states.doubt("e-1", "e-1.2")
            states.doubt("e-2", "e-2.9")  # another's
            await states.commit(state)
        states = DeviceStates(folder, 10_000, 1000, counts)  # it is remembered
        told["e-1.2"] = answer
        await states.wait_settled("e-1", PROGRAM)
        assert given(states, 3) == left
        told["e-1.2"] = False
        await states.wait_settled("e-1", PROGRAM)
        assert given(states, 3) == ("two" if answer else "one")  # once it counts, nobody asks again


def refuse(*_given: object) -> None:
    raise OSError(28, "No space left on device")
