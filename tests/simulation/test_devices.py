"""How long simulated devices take, and which drop out."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import PropellerError
from propeller.simulation.description import DevicesSpec
from propeller.simulation.device_trace import DeviceTrace, TraceRow
from propeller.simulation.devices import Draws, VirtualDevices

LOGNORMAL = {"distribution": "lognormal", "median": 10, "sigma": 1}
UNIFORM = {"distribution": "uniform", "low": 2, "high": 3}


def devices(**fields: Any) -> VirtualDevices:
    return DevicesSpec.decode(fields).to_devices()


def draw(made: VirtualDevices, client: int = 0, task: int = 0, *, sent: int = 0, samples: int = 0) -> Draws:
    return made.draw(client, task, sent, lambda _client: samples)


def refused(folder: Path | None = None, **fields: Any) -> str:
    with pytest.raises(PropellerError) as caught:
        DevicesSpec.decode(fields).to_devices(folder)
    return str(caught.value)


def test_what_nothing_is_said_of() -> None:
    assert draw(devices(), samples=50, sent=10**6) == Draws(1.0, drops_out=False)


def test_a_task_takes_its_computation_its_samples_and_what_is_sent() -> None:
    made = devices(seconds=2, seconds_per_sample=0.5, bytes_per_s=100)
    assert draw(made, samples=6, sent=1000) == Draws(2 + 3 + 10, drops_out=False)
    assert draw(devices(seconds_per_sample=0.5), samples=6).seconds == 3


def test_the_numbers_of_a_seed() -> None:
    # Of PCG64's raw integers, so the same with every NumPy (docs/decisions/0195).
    made = devices(seconds=UNIFORM, seed=7)
    assert [draw(made, client, task).seconds for client, task in ((0, 0), (0, 1), (1, 0))] == [
        2.341855636174187,
        2.499515190287328,
        2.1275027485285207,
    ]
    assert draw(devices(seconds=LOGNORMAL, seed=7)).seconds == pytest.approx(24.82269637785826, rel=1e-12)
    drops = [draw(devices(drop_out=0.5, seed=7), client).drops_out for client in range(8)]
    assert drops == [False, True, True, False, True, True, True, True]


DISTRIBUTIONS = st.sampled_from(
    [
        3,
        UNIFORM,
        LOGNORMAL,
        {"distribution": "exponential", "mean": 4},
        {**LOGNORMAL, "by": "client"},
        {**UNIFORM, "by": "client"},
    ]
)


@given(DISTRIBUTIONS, DISTRIBUTIONS, st.floats(0, 0.99), st.integers(0, 2**53 - 1), st.randoms())
def test_what_is_drawn_does_not_depend_on_the_order_of_the_clients(
    seconds: Any, speed: Any, part: float, seed: int, order: Any
) -> None:
    fields = {"seconds": seconds, "bytes_per_s": speed, "drop_out": part, "seed": seed}
    asked = [(client, task) for client in range(5) for task in range(3)]
    found = {one: draw(devices(**fields), *one, sent=5) for one in asked}
    order.shuffle(asked)
    made = devices(**fields)
    assert {one: draw(made, *one, sent=5) for one in asked} == found
    assert all(math.isfinite(one.seconds) and one.seconds >= 0 for one in found.values())


@given(st.integers(0, 2**53 - 1), st.integers(0, 10**6))
def test_a_device_may_be_slow_by_nature(seed: int, client: int) -> None:
    nature = devices(seconds={**LOGNORMAL, "by": "client"}, seed=seed)
    luck = devices(seconds={**LOGNORMAL, "by": "task"}, seed=seed)
    assert luck == devices(seconds=LOGNORMAL, seed=seed)
    assert len({draw(nature, client, task).seconds for task in range(5)}) == 1
    assert draw(nature, client).seconds != draw(nature, client + 1).seconds
    assert len({draw(luck, client, task).seconds for task in range(5)}) == 5


def test_another_distribution_changes_nothing_else() -> None:
    alone = devices(seconds=LOGNORMAL, drop_out=0.3, seed=1)
    more = devices(seconds=LOGNORMAL, drop_out=0.3, seed=1, bytes_per_s=UNIFORM)
    for client in range(20):
        assert draw(alone, client, sent=0) == draw(more, client, sent=0)


def test_the_distributions_are_what_they_are_called() -> None:
    def of(**fields: Any) -> list[float]:
        made = devices(seconds=fields)
        return [draw(made, client).seconds for client in range(4000)]

    assert statistics.fmean(of(distribution="uniform", low=2, high=4)) == pytest.approx(3, rel=0.02)
    assert statistics.fmean(of(distribution="exponential", mean=5)) == pytest.approx(5, rel=0.06)
    logs = [math.log(one / 10) for one in of(**LOGNORMAL)]
    assert statistics.fmean(logs) == pytest.approx(0, abs=0.06)
    assert statistics.pstdev(logs) == pytest.approx(1, rel=0.05)


def test_very_slow_devices_are_still_at_a_moment() -> None:
    made = devices(seconds={"distribution": "lognormal", "median": 1e9, "sigma": 1e9})
    assert all(0 <= draw(made, client).seconds <= 1e10 for client in range(50))


def test_a_device_that_drops_out_goes_silent_and_is_noticed_later() -> None:
    made = devices(seconds=8, drop_out={"part": 0.25, "noticed_after_s": 100})
    found = [draw(made, client) for client in range(4000)]
    gone = [one.seconds for one in found if one.drops_out]
    assert len(gone) == pytest.approx(1000, rel=0.1)
    assert all(100 <= one <= 108 for one in gone)
    assert statistics.fmean(gone) == pytest.approx(104, rel=0.01)  # silent from any moment of the task on
    assert {one.seconds for one in found if not one.drops_out} == {8}
    # A number is the part; and a fleet's liveness window goes by.
    usual = draw(devices(seconds=0, drop_out=0.999999))
    assert usual == Draws(30, drops_out=True)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seconds": "10"}, "devices.seconds: '10' is neither a number nor a distribution"),
        ({"seconds": True}, "devices.seconds: True is neither"),
        ({"seconds": float("nan")}, "devices.seconds: nan is not a number from 0 to"),
        ({"seconds_per_sample": -1}, "devices.seconds_per_sample: -1 is not a number from 0"),
        ({"seconds": {"distribution": "gamma"}}, "distribution: 'gamma' is none of constant, uniform"),
        ({"seconds": {"median": 1, "sigma": 1}}, "devices.seconds.distribution: None is none of"),
        ({"seconds": {**LOGNORMAL, "by": "round"}}, 'seconds.by: \'round\' is neither "task" nor "client"'),
        ({"seconds": {"distribution": "uniform", "low": 1}}, "uniform has low and high, this one low"),
        ({"seconds": {"distribution": "exponential"}}, "exponential has mean, this one nothing"),
        ({"seconds": {**UNIFORM, "low": 5}}, "devices.seconds: low is 5, above high, which is 3"),
        ({"seconds": {**LOGNORMAL, "sigma": "1"}}, "devices.seconds.sigma: '1' is not a number"),
        ({"bytes_per_s": 0}, "devices.bytes_per_s: is always 0: give bytes a second, or leave it out"),
        ({"bytes_per_s": {"distribution": "uniform", "low": 0, "high": 0}}, "bytes_per_s: is always 0"),
        ({"drop_out": 1}, "drop_out.part: Input should be less than 1"),
        ({"drop_out": {"part": 0.1, "noticed_after": 3}}, "did you mean 'noticed_after_s'"),
        ({"drop_out": {"noticed_after_s": -1}}, "drop_out.noticed_after_s"),
        ({"drop_out": "often"}, "drop_out: must be a table of noticed_after_s, part"),
        ({"seed": -1}, "seed"),
        ({"trace": "nowhere.csv"}, "devices.trace: nowhere.csv: No such file or directory: name a CSV file"),
        ({"trace": "a.csv", "seconds": 1}, "devices.trace: says how long tasks take: leave seconds out"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], text: str) -> None:
    assert text in refused(**fields)


# A recorded trace ----------------------------------------------------------------------------------------------


def trace(folder: Path, text: str) -> VirtualDevices:
    (folder / "trace.csv").write_text(text)
    return DevicesSpec.decode({"trace": "trace.csv"}).to_devices(folder)


def test_a_trace_is_replayed_by_each_client(tmp_path: Path) -> None:
    made = trace(tmp_path, "client,seconds\nphone-10,7\nphone-2,1\nphone-2,2.5\n")

    def seconds(client: int) -> list[float]:
        return [draw(made, client, task, sent=10**9).seconds for task in range(3)]

    assert seconds(0) == [1, 2.5, 1]  # phone-2 stands before phone-10, and its rows begin again
    assert seconds(1) == [7, 7, 7]
    assert seconds(2) == seconds(0)  # more clients than devices


def test_each_line_of_a_trace_without_names_is_a_device(tmp_path: Path) -> None:
    made = trace(tmp_path, "seconds,bytes_per_s,drops_out\n1,100,0\n2,50,true\n3,1,\n")
    assert draw(made, 0, sent=1000) == Draws(11, drops_out=False)
    assert draw(made, 1, sent=1000) == Draws(22 + 30, drops_out=True)  # recorded; it is noticed later
    assert draw(made, 2, 5) == Draws(3, drops_out=False)
    assert draw(made, 4) == draw(made, 1)


def test_drop_outs_of_a_trace_that_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("seconds\n5\n")
    spec = {"trace": "a.csv", "drop_out": {"part": 0.5, "noticed_after_s": 10}}
    found = [draw(DevicesSpec.decode(spec).to_devices(tmp_path), client) for client in range(40)]
    assert {one.drops_out for one in found} == {True, False}
    (tmp_path / "a.csv").write_text("seconds,drops_out\n5,0\n")
    assert "the trace says which devices drop out" in refused(tmp_path, **spec)


@given(
    st.dictionaries(
        st.integers(0, 99), st.lists(st.floats(0, 1e6), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_what_was_recorded_is_what_happens(recorded: dict[int, list[float]], client: int, task: int) -> None:
    found = DeviceTrace([[TraceRow(one) for one in recorded[device]] for device in sorted(recorded)])
    mine = recorded[sorted(recorded)[client % len(recorded)]]
    assert draw(VirtualDevices(trace=found), client, task).seconds == mine[task % len(mine)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seconds\n", "trace.csv: has no rows"),
        ("seconds,client\n1\n", "trace.csv, line 2: has 1 values, and the first line 2 names"),
        ("client,second\na,1\n", "line 1: there is no column 'second' of a trace; did you mean 'seconds'"),
        ("client\na\n", "line 1: has no column seconds: add what each task took"),
        ("1,2\n1,2\n", "line 1: has numbers, not names of columns"),
        ("seconds,seconds\n1,2\n", "line 1: there are several columns 'seconds'"),
        (
            "seconds\n1\nslow\n\n-2\n",
            "line 3: seconds is 'slow': write a number of 0 or more; line 5: seconds",
        ),
        ("seconds\ninf\n", "line 2: seconds is 'inf'"),
        ("client,seconds\n,1\n", "line 2: client is empty: name the device, or leave the column out"),
        ("seconds,bytes_per_s\n1,0\n", "line 2: bytes_per_s is '0': write a number above 0"),
        ("seconds,drops_out\n1,maybe\n", "line 2: drops_out is 'maybe': write 1 or 0, or true or false"),
        ("seconds\n" + 12 * "x\n", "line 11: seconds is 'x': write a number of 0 or more; and 2 more"),
    ],
)
def test_wrong_lines_of_a_trace_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "trace.csv").write_text(text)
    told = refused(tmp_path, trace="trace.csv")
    assert told.startswith("devices.trace: ")
    assert said in told
