"""The hours at which simulated devices are there."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.data import program_path
from propeller.errors import PropellerError
from propeller.sdk import Experiment
from propeller.simulation import Simulation, simulate
from propeller.simulation.availability import Availability, RecordedHours
from propeller.simulation.description import DevicesSpec

HOUR = 3600.0
NIGHTS = {
    "begins": {"distribution": "uniform", "low": 20, "high": 26},
    "hours": {"distribution": "lognormal", "median": 8, "sigma": 0.3},
}


def available(**fields: Any) -> Availability:
    found = DevicesSpec.decode({"available": fields, "seed": 3}).to_devices().availability
    assert found is not None
    return found


def there(made: Availability, hour: float, count: int = 1) -> list[bool]:
    found: list[bool] = made.at(hour * HOUR, count).tolist()
    return found


def test_a_window_of_every_day() -> None:
    made = available(begins=22, hours=8)
    hours = [hour for hour in range(72) if there(made, hour)[0]]
    assert hours == [*range(6), *range(22, 30), *range(46, 54), *range(70, 72)]
    assert made.ends(0, 23 * HOUR) == 30 * HOUR
    assert made.ends(0, 12 * HOUR) == 12 * HOUR
    assert made.next_begin(23 * HOUR, 1) == 46 * HOUR


def test_the_experiment_begins_at_an_hour_of_the_day() -> None:
    made = available(begins=22, hours=8, start=21)
    assert there(made, 0) == [False]
    assert made.next_begin(0, 1) == HOUR
    assert there(made, 1) == [True]
    assert made.ends(0, HOUR) == 9 * HOUR


def test_windows_without_a_gap_are_one() -> None:
    assert available(begins=22, hours=24).ends(0, 5 * HOUR) == math.inf
    assert available(begins=22, hours=30).ends(0, 5 * HOUR) == math.inf  # a day at most


def test_the_numbers_of_a_seed() -> None:
    # Of PCG64's raw integers, so the same with every NumPy (docs/decisions/0195).
    made = available(**NIGHTS)
    assert made.at(23 * HOUR, 12).nonzero()[0].tolist() == [2, 5, 6, 7, 8, 10, 11]
    assert made.ends(2, 23 * HOUR) == pytest.approx(94628.06578231412, rel=1e-12)
    by_nature = available(
        begins={**NIGHTS["begins"], "by": "client"}, hours={**NIGHTS["hours"], "by": "client"}
    )
    days = [by_nature.at((24 * day + 23) * HOUR, 50).tolist() for day in range(1, 4)]
    assert days[0] == days[1] == days[2]
    assert made.at(47 * HOUR, 50).tolist() != made.at(71 * HOUR, 50).tolist()


RECORDED = RecordedHours([[(1.0, 5.0), (5.0, 7.5), (20.0, 30.0)], [(0.25, 2.0)], [(3.0, 48.0)]], 1.5)
FLEETS = st.sampled_from([available(**NIGHTS), available(begins=3, hours=24), RECORDED])


@given(FLEETS, st.floats(0, 1e6), st.integers(1, 40))
def test_a_device_is_there_from_when_it_comes_until_it_goes(
    made: Availability, now: float, count: int
) -> None:
    present = made.at(now, count)
    ends = [made.ends(client, now) for client in range(count)]
    assert [end > now for end in ends] == present.tolist()
    assert made.at(now, count + 7)[:count].tolist() == present.tolist()
    for client, end in enumerate(ends):
        if now < end < math.inf:
            assert not made.at(end, count)[client]
            assert made.at(np.nextafter(end, 0), count)[client]
    begins = made.next_begin(now, count)
    assert begins > now
    before = made.at(np.nextafter(begins, 0), count)
    assert not (before & ~present).any()  # nobody came before
    assert made.at(begins, count).any()


def test_a_recording_begins_again_after_whole_days() -> None:
    made = RecordedHours([[(22.0, 30.0)], [(1.0, 2.0)]])
    assert [hour for hour in range(100) if there(made, hour, 3)[2]] == [*range(22, 30), *range(70, 78)]
    assert [hour for hour in range(100) if there(made, hour, 3)[1]] == [1, 49, 97]


# In a simulation ---------------------------------------------------------------------------------------------------


def run(devices: Any, **fields: Any) -> Simulation:
    given = {
        "program": "logreg",
        "rounds": 2,
        "model": {"w": [0.0, 0.0], "b": 0.0},
        "selection": {"fraction": 1.0, "seed": 1},
        **fields,
    }
    data = [
        {"data": [{"x": [one / 10, client], "y": int(one > 5)} for one in range(10)]} for client in range(4)
    ]
    return simulate(
        Experiment(**given), data=data, program=program_path("logreg"), workers=1, devices=devices
    )


def trace(folder: Path, text: str) -> str:
    file = folder / "hours.csv"
    file.write_text(f"client,begins,ends\n{text}")
    return str(file)


def test_only_those_who_are_there_are_chosen(tmp_path: Path) -> None:
    hours = trace(tmp_path, "a,0,1\nb,0,24\nc,5,6\nd,0,1\n")
    ended = run({"seconds": HOUR / 2, "available": hours}, timeout_s=2 * HOUR)
    first, second = ended.history()
    assert sorted(first["names"].values()) == ["client-1", "client-2", "client-4"]
    assert sorted(second["names"].values()) == ["client-1", "client-2", "client-4"]
    ended = run({"seconds": HOUR, "available": hours}, timeout_s=2 * HOUR)
    assert list(ended.history()[1]["names"].values()) == ["client-2"]


def test_a_device_that_goes_in_the_middle_drops_out(tmp_path: Path) -> None:
    hours = trace(tmp_path, "a,0,1\nb,0,24\n")
    devices = {"seconds": 1.5 * HOUR, "available": hours, "drop_out": {"noticed_after_s": 30}}
    ended = run(devices, timeout_s=2 * HOUR, rounds=1)
    (one,) = ended.history()
    assert {failure["name"] for failure in one["failures"]} == {"client-1", "client-3"}
    assert {failure["reason"] for failure in one["failures"]} == {"the device dropped out"}
    assert ended.virtual_seconds == 1.5 * HOUR


def test_a_round_waits_until_enough_have_come(tmp_path: Path) -> None:
    hours = trace(tmp_path, "a,0,24\nb,1,24\nc,2,24\nd,3,24\n")
    ended = run(
        {"seconds": 60, "available": hours},
        selection={"count": 2, "min_available": 3, "seed": 1},
        timeout_s=5 * HOUR,
        rounds=1,
    )
    assert (ended.state, ended.virtual_seconds) == ("completed", 2 * HOUR + 60)
    late = run({"available": hours}, selection={"count": 3}, timeout_s=HOUR, retries=0)
    assert late.state == "failed"
    assert "3 devices needed, 2 there" in str(late.reason)


def test_the_same_seed_gives_the_same_bytes() -> None:
    devices = {"seconds": 1000, "available": NIGHTS, "seed": 5}
    one, again = (run(devices, timeout_s=24 * HOUR, rounds=5, min_updates=1) for _ in range(2))
    assert one.state == "completed", one.reason
    told = [
        json.dumps([{**each, "round_id": ""} for each in ended.history()]).replace(ended.id, "")
        for ended in (one, again)
    ]
    assert told[0] == told[1]
    assert one.model()["w"].tobytes() == again.model()["w"].tobytes()


def test_asynchronous_rounds_ask_those_who_are_there(tmp_path: Path) -> None:
    hours = trace(tmp_path, "a,0,1\nb,0,24\nc,0,24\nd,5,6\n")
    ended = run(
        {"seconds": 600, "available": hours},
        mode={"kind": "async", "buffer": 1, "concurrency": 2},
        selection={"seed": 1},
        rounds=8,
        timeout_s=3 * HOUR,
    )
    assert ended.state == "completed", ended.reason
    names = {name for one in ended.history() for name in one["names"].values()}
    assert "client-4" not in names


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give begins, the hour of the day, and hours"),
        ({"begins": 3}, "give begins, the hour of the day, and hours"),
        ({"begins": 3, "hours": 0}, "devices.available.hours: is always 0"),
        ({"begins": -3, "hours": 1}, "devices.available.begins: -3 is not a number"),
        ({"begins": 3, "hours": 1, "trace": "x.csv"}, "leave begins and hours out"),
        ({"begin": 3}, "did you mean 'begins'"),
        ({"trace": "none.csv"}, "devices.available.trace: none.csv: No such file"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PropellerError) as caught:
        DevicesSpec.decode({"available": fields}).to_devices()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client,begins\na,1\n", "has no column ends: add the hour at which it went"),
        ("client,begins,ends\na,2,2\n", "line 2: begins is '2' and ends '2': write hours of 0 or more"),
        ("client,begins,ends\na,x,2\n", "line 2: begins is 'x'"),
        ("client,begins,ends\n,1,2\n", "line 2: client is empty"),
        ("client,begins,ends\n", "has no rows"),
        ("", "hours.csv"),
    ],
)
def test_wrong_lines_of_a_trace_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hours.csv").write_text(text)
    with pytest.raises(PropellerError) as caught:
        DevicesSpec.decode({"available": "hours.csv"}).to_devices(tmp_path)
    assert str(caught.value).startswith("devices.available.trace: ")
    assert said in str(caught.value)
