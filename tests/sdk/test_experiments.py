"""Experiments from Python: submitting, following, steering and reading them, in both forms of the client."""

import inspect
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller import sdk
from propeller.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    PropellerError,
    UnauthenticatedError,
    UnavailableError,
)
from propeller.protocol.experiments import ExperimentSpec
from propeller.sdk import (
    AsyncExperimentHandle,
    AsyncPropeller,
    Experiment,
    ExperimentFailedError,
    ExperimentHandle,
    Propeller,
    RoundResult,
    WaitTimeoutError,
)
from propeller.sdk import handle as handle_module
from propeller.sdk.programs import PushedProgram
from support.fake_stack import PASSWORD, USER, FakeStack

HISTORY = [
    {
        "number": 1,
        "attempt": 1,
        "kind": "train",
        "round_id": "exp.1",
        "state": "completed",
        "base_version": 0,
        "model_version": 1,
        "seconds": 0.5,
        "metrics": {"loss": 0.5},
        "num_samples": 30,
        "participants": ["id-1", "id-3", "id-2"],
        "names": {"id-1": "ward-1", "id-2": "ward-2"},
        "updates": [{"proplet_id": "id-1", "num_samples": 30, "metrics": {"loss": 0.5}, "size": 10}],
        "failures": [{"proplet_id": "id-2", "reason": "out of memory"}],
    },
    {
        "number": 1,
        "attempt": 1,
        "kind": "evaluate",
        "round_id": "exp.e1",
        "state": "completed",
        "base_version": 1,
        "model_version": None,
        "seconds": 0.1,
        "metrics": {"accuracy": 0.9},
        "num_samples": 3,
        "updates": [{"proplet_id": "id-1", "num_samples": 3, "metrics": {"accuracy": 0.9}, "size": 0}],
        "failures": [],
    },
    {
        "number": 2,
        "attempt": 1,
        "kind": "train",
        "round_id": "exp.2",
        "state": "failed",
        "reason": "nobody is there",
    },
]


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with FakeStack().running() as running:
        yield running


@pytest.fixture
def fl(stack: FakeStack) -> Iterator[Propeller]:
    with Propeller(**stack.urls(), oci_registry="http://localhost:5000") as client:
        yield client


def experiment(**fields: Any) -> Experiment:
    return Experiment(**{"program": "localhost:5000/digits:v1", "rounds": 2, "id": "exp", **fields})


def test_an_experiment_is_submitted_with_its_model_and_its_data(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(
        experiment(
            strategy={"name": "fedadam", "server_lr": np.float64(0.01)},
            model={"w": np.zeros(3), "b": 0.0},
            data=[{"data": [{"x": [1.0], "y": 0}]}, {"data": [{"x": [2.0], "y": 1}]}],
            hyperparams={"lr": np.float32(0.5), "epochs": np.int64(2)},
        )
    )
    assert handle.id == "exp"
    sent = stack.specs["exp"]
    assert sent["strategy"] == {"name": "fedadam", "server_lr": 0.01}
    assert sent["hyperparams"] == {"lr": 0.5, "epochs": 2}
    assert sent["model"] == {"version": 1}
    assert {name: one["data"][0]["y"] for name, one in stack.datasets.items()} == {"id-2": 0, "id-1": 1}
    assert ExperimentSpec.decode(sent).name == "digits"
    assert repr(handle) == "<ExperimentHandle exp: running, 0 of 2 rounds>"


def test_programs_that_are_files_are_pushed_from_their_folder(
    stack: FakeStack, fl: Propeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[Path, str | None]] = []

    def push(file: Path, _registry: str, name: str | None, _login: object) -> PushedProgram:
        pushed.append((file, name))
        return PushedProgram(f"localhost:5000/{file.stem}@sha256:{'0' * 64}", 1, 0.0, 0.0)

    monkeypatch.setattr("propeller.sdk.client.push_file", push)
    made = experiment(program="train.py", strategy={"program": "merge.py", "clip": 0.1})
    for folder, place in ((None, Path()), ("mine", Path("mine"))):
        fl.run(made) if folder is None else fl.run(made, folder=folder)
        assert pushed == [(place / "train.py", "train"), (place / "merge.py", None)]
        assert stack.specs["exp"]["program"].startswith("localhost:5000/train@sha256:")
        assert stack.specs["exp"]["strategy"]["program"].startswith("localhost:5000/merge@sha256:")
        assert stack.specs["exp"]["strategy"]["clip"] == 0.1
        pushed.clear()


def test_objects_show_what_they_are_and_no_secret(stack: FakeStack) -> None:
    client = {"id": "op-id", "key": "very-secret"}
    services = {name: {"url": url} for name, url in stack.urls().items()}
    fl = Propeller(stack={"services": services, "clients": {"operator": client}})
    with fl, Propeller(**stack.urls(), user="ada", password="very-secret") as as_user:
        handle = fl.run(experiment())
        shown = [
            repr(one) for one in (fl, fl.models, fl.users, fl.devices, as_user, handle, handle.history())
        ]
    kinds = ["Propeller", "Models", "Users", "Devices", "Propeller"]
    assert shown == [
        *(f"<{kind} of {stack.url}>" for kind in kinds),
        "<ExperimentHandle exp: running, 0 of 2 rounds>",
        "<History of exp: 0 rounds, 0 evaluations; metrics: none>",
    ]
    assert repr(AsyncPropeller(**stack.urls()).users) == f"<AsyncUsers of {stack.url}>"
    ended = RoundResult("r-1", 3, [{"proplet_id": "a"}] * 3, 0.25, {"b": "no memory"}, ["c"])
    assert repr(ended) == "<RoundResult r-1: v3 of 3 updates, 0.2 s; failed: b; missing: c>"


def test_every_method_names_its_arguments() -> None:
    """So that editors show them and type checkers know them."""
    for name in sdk.__all__:
        for method_name, method in inspect.getmembers(getattr(sdk, name), inspect.isfunction):
            if method_name.startswith("_") or name.endswith("Error"):
                continue
            kinds = {one.kind for one in inspect.signature(method).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name}.{method_name}"
    blocking, other = (inspect.signature(kind.run_round).parameters for kind in (Propeller, AsyncPropeller))
    assert list(blocking) == list(other)
    start = inspect.signature(AsyncPropeller.start_round).parameters
    assert {**start, "on_update": None}.keys() == set(other)


def test_an_experiment_is_shown_without_its_numbers() -> None:
    big = experiment(model={"w": np.zeros(100_000)}, data=[{"data": [1]}] * 3, hyperparams={"lr": 0.1})
    assert repr(big) == (
        "Experiment(program='localhost:5000/digits:v1', rounds=2, id='exp', model=<tensors w>, data=<of 3 devices>, "
        "hyperparams={'lr': 0.1})"
    )
    assert len({big, experiment(model={"w": np.zeros(3)})}) == 2


def test_an_id_of_its_own_is_made(stack: FakeStack, fl: Propeller) -> None:
    one, other = (fl.run(experiment(id=None, name="mine")) for _ in range(2))
    assert one.id.startswith("mine-")
    assert one.id != other.id
    assert [found["id"] for found in fl.experiments()] == [other.id, one.id]


def test_each_run_of_one_without_an_id_is_another_experiment(stack: FakeStack, fl: Propeller) -> None:
    again = experiment(id=None, name="mine")
    assert again.spec.id is None
    one, other = fl.run(again), fl.run(again)
    assert len({one.id, other.id}) == len(stack.specs) == 2
    with again.submission() as first, again.submission() as second:  # as in an event loop
        assert first.id != second.id
    own = experiment()
    assert fl.run(own).id == fl.run(own).id == "exp"


def test_what_may_have_been_submitted_is_not_begun_twice(stack: FakeStack, fl: Propeller) -> None:
    mine = experiment(id=None, model={"w": np.ones(3)})
    stack.loses_answers = 1
    with pytest.raises(UnavailableError, match="did not answer"):
        fl.run(mine)
    [submitted] = stack.specs
    assert fl.run(mine).id == submitted
    assert (len(stack.specs), len(stack.models)) == (1, 2)
    assert fl.run(mine).id != submitted
    with pytest.raises(ConflictError), mine.submission() as taken:
        raise ConflictError("another one has the id")
    with mine.submission() as free:
        assert free.id != taken.id


def test_data_by_device_and_a_model_by_alias(stack: FakeStack, fl: Propeller) -> None:
    fl.run(
        experiment(
            model="production",
            data={"brave-fox-7": {"data": [1]}, "id-1": {"data": [2]}, "test": {"data": [3]}},
            evaluate={"on": "central", "dataset": "test"},
            split={"holdout": 0.2},
        )
    )
    assert stack.datasets == {"id-2": {"data": [1]}, "id-1": {"data": [2]}, "test": {"data": [3]}}
    assert stack.specs["exp"]["model"] == {"version": "production"}
    assert stack.specs["exp"]["data"] == {"split": {"holdout": 0.2, "seed": 0}}
    central = {"on": "central", "dataset": "other"}
    with pytest.raises(NotFoundError, match="no data set 'other'"):  # and nothing of it is stored
        fl.run(experiment(id="exp-2", data={"id-1": {"data": [4]}}, evaluate=central))
    assert stack.datasets["id-1"] == {"data": [2]}


def test_devices_are_named_as_people_name_them(stack: FakeStack) -> None:
    clients = {"proplet-1": {"id": "id-1", "key": "k"}, "manager": {"id": "m", "key": "k"}}
    with Propeller(**stack.urls(), stack={"clients": clients}) as fl:
        fl.run(experiment(selection={"names": ["proplet-1", "old-crow-2"]}))
        assert stack.specs["exp"]["selection"]["names"] == ["id-1", "id-3"]
        with pytest.raises(InvalidError, match="'proplet-9'; did you mean 'proplet-1'"):
            fl.run(experiment(selection={"names": ["proplet-9"]}))
        with pytest.raises(InvalidError, match=r"selection\.names: proplet-1 and id-1 are the same device"):
            fl.run(experiment(selection={"names": ["proplet-1", "id-1"]}))


def test_devices_of_one_name_are_named_by_their_ids(stack: FakeStack, fl: Propeller) -> None:
    names = ["proplet-10", "proplet-2", "proplet-2"]
    stack.devices = [
        one | {"name": name, "alive": True} for one, name in zip(stack.devices, names, strict=True)
    ]
    with pytest.raises(
        InvalidError, match=r"selection\.names: 2 devices are called 'proplet-2'; .*: id-2, id-3"
    ):
        fl.run(experiment(selection={"names": ["proplet-2"]}))
    fl.run(experiment(data=[{"data": [number]} for number in range(3)]))
    assert stack.datasets == {"id-2": {"data": [0]}, "id-3": {"data": [1]}, "id-1": {"data": [2]}}


def test_devices_with_data_of_their_own_are_given_none(stack: FakeStack, fl: Propeller) -> None:
    own = {"own_data": True}
    stack.devices = [
        one | {"alive": True, "metadata": own if one["id"] == "id-2" else {}} for one in stack.devices
    ]
    fl.run(experiment(data=[{"data": [number]} for number in range(2)]))
    assert set(stack.datasets) == {"id-1", "id-3"}
    with pytest.raises(InvalidError, match="3 data sets for 2 devices, beside 1 with data of their own"):
        fl.run(experiment(data=[{"data": [number]} for number in range(3)]))
    told = "brave-fox-7 has data of its own .*: leave it out"
    with pytest.raises(InvalidError, match=f"data: {told}"):
        fl.run(experiment(data={"id-2": {"data": [1]}}))
    with pytest.raises(InvalidError, match=f"name: {told}"):
        fl.put_dataset("brave-fox-7", {"data": [1]})
    assert "id-2" not in stack.datasets


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rounds": 0}, "rounds: "),
        ({"rounds": True}, "rounds: "),
        ({"hyperparams": {"lr": float("nan")}}, r"hyperparams\.lr: must be a finite number"),
        ({"selection": {"fracton": 0.5}}, r"selection\.fracton: .*did you mean 'fraction'"),
        ({"selection": {"count": 2}, "k_of_n": 3}, "k_of_n"),
        ({"stratgy": "fedavg"}, "stratgy: there is no such field; did you mean 'strategy'"),
        ({"seed": 1, "spilt": {}}, "seed: .*'selection.seed'.*; spilt: .*'split'"),
        ({"program": None}, "program: "),
        ({"data": []}, "data: it is empty"),
        ({"data": np.zeros(3)}, "data: ndarray cannot be sent; give data sets by the names of devices"),
        ({"data": [{}, [1]]}, r"data\[1\]: list is no data set"),
        ({"data": {"proplet-1": 1}}, r"data\['proplet-1'\]: int is no data set"),
        (
            {"data": {"proplet-1": {"data": [1]}, "proplet-2": {"data": []}}},
            r"data\['proplet-2'\]: it has no samples",
        ),
        ({"data": [{"data": [1]}, {"data": ()}]}, r"data\[1\]: it has no samples"),
        ({"model": {}}, "model: there are no tensors"),
        ({"strategy": {"nam": "fedavg"}}, "strategy: "),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_sent(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        experiment(**fields)


def test_rounds_of_a_step_schedule_are_numbers_or_texts() -> None:
    for first, later in ((1, np.int64(10)), ("1", "10")):
        lr = {"schedule": "step", "values": {first: 0.1, later: 0.01}}
        sent = experiment(hyperparams={"lr": lr, "layers": [1]}).spec.to_json()["hyperparams"]
        assert sent == {"lr": {"schedule": "step", "values": {"1": 0.1, "10": 0.01}}, "layers": [1]}
    with pytest.raises(InvalidError, match=r"hyperparams\.lr\.values: "):
        experiment(hyperparams={"lr": {"schedule": "step", "values": {True: 0.1}}})


def test_data_go_to_a_device_by_its_name_or_id(stack: FakeStack, fl: Propeller) -> None:
    stored = [fl.put_dataset(name, {"data": [name]}) for name in ("brave-fox-7", "id-1", "test")]
    assert stored == list(stack.datasets) == ["id-2", "id-1", "test"]
    with pytest.raises(
        InvalidError, match=r"no device 'brave-fox-8'; did you mean 'brave-fox-7'\?.* central=True"
    ):
        fl.put_dataset("brave-fox-8", {"data": [1]})
    assert fl.put_dataset("brave-fox-8", {"data": [1]}, central=True) == "brave-fox-8"
    assert fl.put_dataset("brave-fox-7", {"data": [1]}, central=True) == "brave-fox-7"
    with pytest.raises(InvalidError, match="data: it has no samples"):
        fl.put_dataset("id-1", {"data": []})
    assert fl.put_dataset("id-1", {"schema": "mine", "data": [], "rows": 3}) == "id-1"
    stack.devices = [one | {"name": "same"} for one in stack.devices]
    with pytest.raises(InvalidError, match="3 devices are called 'same'; name by its id"):
        fl.put_dataset("same", {"data": []})


def test_fields_are_given_by_name() -> None:
    with pytest.raises(InvalidError, match=r"program: .*; rounds: "):
        Experiment()  # type: ignore[call-arg]
    with pytest.raises(InvalidError, match=r"Experiment\(program=…, rounds=…\)"):
        Experiment("localhost:5000/digits:v1", 2)  # type: ignore[call-arg]
    assert list(inspect.signature(Experiment).parameters)[:2] == ["program", "rounds"]
    assert replace(experiment(), rounds=7).spec.rounds == 7


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"selection": {"names": ["calm-oter-41"]}},
            "selection.names: .*'calm-oter-41'; did you mean 'calm-otter-41'",
        ),
        ({"data": {"brave-fox": {}}}, "data: .*'brave-fox'; did you mean 'brave-fox-7'"),
        (
            {"data": {"tset": {}}, "evaluate": {"on": "central", "dataset": "test"}},
            "data: .*'tset'; did you mean 'test'",
        ),
        ({"data": [{}]}, "data: there are 1 data sets for 2 devices"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(
    stack: FakeStack, fl: Propeller, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        fl.run(experiment(**fields))
    assert stack.specs == {}
    assert stack.datasets == {}


def test_nothing_is_stored_for_an_experiment_that_is_refused(stack: FakeStack, fl: Propeller) -> None:
    stack.refusal = "strategy: there is no 'fedavvg'; did you mean 'fedavg'?"
    brings = {"model": {"w": np.ones(3)}, "data": [{"data": [{"y": 1}]}, {"data": [{"y": 2}]}]}
    with pytest.raises(InvalidError, match="did you mean 'fedavg'"):
        fl.run(experiment(strategy="fedavvg", **brings))
    stack.refusal = None
    with pytest.raises(InvalidError, match=r"data\[0\]\.y: must be a finite number"):
        fl.run(experiment(**brings | {"data": [{"data": [{"y": 1}]}, {"data": [{"y": float("inf")}]}]}))
    with pytest.raises(InvalidError, match=r"model: .*'w'"):
        fl.run(experiment(**brings | {"model": {"w": np.array([np.nan])}}))
    assert (len(stack.models), stack.datasets, stack.specs) == (1, {}, {})


def test_the_same_experiment_again_stores_nothing(stack: FakeStack, fl: Propeller) -> None:
    brings = {"model": {"w": np.ones(3)}, "data": [{"data": [{"y": 1}]}, {"data": [{"y": 2}]}]}
    fl.run(experiment(**brings))
    before = stack.specs["exp"]
    stack.datasets.clear()
    assert fl.run(experiment(**brings)).id == "exp"
    assert (len(stack.models), stack.datasets, stack.specs["exp"]) == (2, {}, before)
    with pytest.raises(ConflictError, match="exp exists and began from another model"):
        fl.run(experiment(**brings | {"model": {"w": np.zeros(3)}}))
    assert len(stack.models) == 2


@pytest.mark.parametrize("name", ["", "../rounds/r-1", "exp?format=csv", "exp/stop"])
def test_what_is_no_id_is_not_asked_for(fl: Propeller, name: str) -> None:
    fl.run(experiment())
    with pytest.raises(InvalidError, match="is not a valid id"):
        fl.experiment(name)


def test_events_come_as_they_happen_and_end_with_the_experiment(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    stack.happen("state", state="running")
    seen = []
    for event in handle.events():
        seen.append(event.kind)
        if event.kind == "state" and event.data["state"] == "running":
            stack.happen("round_started", number=1, round_id="exp.1")
        if event.kind == "round_started":
            stack.happen("state", state="completed")
    assert seen == ["state", "round_started", "state"]


def test_a_stream_that_breaks_goes_on_where_it_was(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    for number in range(4):
        stack.happen("update", number=number)
    stack.happen("state", state="completed")
    stack.breaks_after = [2, 0, 1]
    stack.away = 0
    events = list(handle.events())
    assert [event.data.get("number") for event in events] == [0, 1, 2, 3, None]
    assert stack.resumed_behind == [None, "2", "2", "3"]
    assert [event.id for event in handle.events(after="3")] == ["4", "5"]
    assert list(handle.events(after="5")) == []


def test_a_coordinator_that_is_started_again_is_waited_for(
    stack: FakeStack, fl: Propeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = fl.run(experiment())
    stack.happen("state", state="completed")
    stack.away = 3
    assert [event.kind for event in handle.events()] == ["state"]
    stack.away = 3
    assert handle.wait().state == "completed"
    monkeypatch.setattr(handle_module, "PATIENCE_S", -1.0)
    stack.away = 1
    with pytest.raises(UnavailableError, match="503"):
        handle.wait()


def test_events_that_are_no_longer_wanted_leave_nothing_open(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    stack.happen("state", state="running")
    events = handle.events()
    assert next(events).kind == "state"
    events.close()  # type: ignore[attr-defined]
    assert handle.status()["state"] == "running"


def test_waiting_gives_the_result(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    with pytest.raises(WaitTimeoutError, match=r"exp is not over after 0 s \(running, 0 of 2 rounds\)"):
        handle.wait(timeout=0)
    stack.history, stack.best = HISTORY, {"version": 1, "metric": "accuracy", "value": 0.9}
    stack.models.append(stack.models[0])
    timer = threading.Timer(0.05, stack.happen, ("state",), {"state": "completed"})
    timer.start()
    result = handle.wait(timeout=20)
    timer.join()
    assert (result.state, result.rounds, result.asked, result.seconds) == ("completed", 1, 2, 2.0)
    assert result.best == {"version": 1, "metric": "accuracy", "value": 0.9}
    assert result.model_version == 1


def test_a_failed_experiment_is_an_error_with_the_reason(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    stack.happen("state", state="failed", reason="round exp.1: 3 of 3 participants failed: no memory")
    with pytest.raises(ExperimentFailedError, match=r"exp failed after 0 of 2 rounds: round exp\.1: 3 of 3"):
        handle.wait()


def test_steering(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    handle.pause()
    handle.resume()
    handle.stop()
    assert stack.steered == ["pause", "resume", "stop"]


def test_models_are_arrays_that_can_be_changed(stack: FakeStack, fl: Propeller) -> None:
    handle = fl.run(experiment())
    with pytest.raises(NotFoundError, match="exp has no latest model yet: no round has completed"):
        handle.model()
    with pytest.raises(NotFoundError, match="no best model yet"):
        handle.model("best")
    with pytest.raises(InvalidError, match="which: 'worst' is no model"):
        handle.model("worst")
    stack.history, stack.best = HISTORY, {"version": 0, "metric": "loss", "value": 0.1}
    for which in ("latest", "best", 0):
        model = handle.model(which)
        assert model["w"].tolist() == [1.0, 2.0]
        model["w"] += 1


def test_history_as_dicts_rows_and_a_table(
    stack: FakeStack, fl: Propeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = fl.run(experiment())
    stack.history = HISTORY
    history = handle.history()
    assert list(history) == HISTORY
    assert repr(history) == "<History of exp: 2 rounds, 1 evaluations; metrics: loss, accuracy>"
    assert history.metric("loss") == [(1, 0.5)]
    assert history.metric("accuracy", "train") == []
    rows = history.rows()
    assert [(row["kind"], row["proplet_id"], row["name"], row["outcome"], row["reason"]) for row in rows] == [
        ("train", "id-1", "ward-1", "update", None),
        ("train", "id-3", None, "missing", None),
        ("train", "id-2", "ward-2", "failure", "out of memory"),
        ("evaluate", "id-1", None, "update", None),
        ("train", None, None, "failed", "nobody is there"),
    ]
    assert (rows[0]["metrics.loss"], rows[1]["mean.loss"]) == (0.5, 0.5)
    assert handle.history_csv().startswith("number,")
    pytest.importorskip("pandas")
    assert history.to_pandas()["outcome"].tolist() == [row["outcome"] for row in rows]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(PropellerError, match="pip install pandas"):
        history.to_pandas()


def test_an_experiment_by_its_id_or_the_newest_by_its_name(stack: FakeStack, fl: Propeller) -> None:
    fl.run(experiment())
    fl.run(experiment(id="exp-2", name="named"))
    fl.run(experiment(id="exp-3", name="named"))
    assert fl.experiment("named").id == "exp-3"
    assert repr(fl.experiment("exp")) == "<ExperimentHandle exp: running, 0 of 2 rounds>"
    for asked, said in (
        ("nope", "there is no experiment nope: 'propeller experiments' lists those there are"),
        (
            "nam",
            "there is no experiment nam; did you mean named? 'propeller experiments' lists those there are",
        ),
        ("exp-4", r"there is no experiment exp-4; did you mean exp-\d\?"),
    ):
        with pytest.raises(NotFoundError, match=f"^{said}".replace("named?", r"named\?")):
            fl.experiment(asked)


def test_no_experiment_at_all(fl: Propeller) -> None:
    with pytest.raises(NotFoundError, match=r"^there is no experiment nope; there is none yet$"):
        fl.experiment("nope")


def test_a_user_is_logged_in_when_a_service_wants_to_know(stack: FakeStack) -> None:
    stack.wants_login = True
    with Propeller(**stack.urls(), user=USER, password=PASSWORD) as fl:
        fl.run(experiment())
        stack.happen("state", state="completed")
    with Propeller(**stack.urls(), user=USER, password=PASSWORD) as fl:  # the stream is what asks first
        handle = ExperimentHandle(AsyncExperimentHandle(fl._inner._connection, "exp"))  # noqa: SLF001
        assert [event.kind for event in handle.events()] == ["state"]
    with (
        Propeller(**stack.urls(), user=USER, password="wrong") as fl,
        pytest.raises(UnauthenticatedError, match=r"user 'admin' cannot log in at .*: wrong user name"),
    ):
        fl.versions()
    with Propeller(**stack.urls()) as fl, pytest.raises(UnauthenticatedError, match="credentials required"):
        fl.versions()
    operator = {"clients": {"operator": {"id": USER, "key": PASSWORD}}}
    with Propeller(**stack.urls(), stack=operator) as fl:
        assert fl.versions() == [0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "http://fleet:7070"}, "url: give the host alone, as http://fleet"),
        ({"url": "http://fleet:http"}, "url: give the host alone, as http://fleet"),
        ({"url": "ftp://fleet"}, "url: 'ftp://fleet' is not the address of a host"),
        ({"coordinator": "http://a b"}, "coordinator: 'http://a b' is not an address"),
        ({"manager": "fleet:7070"}, "manager: 'fleet:7070' is not an address"),
        ({"user": "a"}, "password: is missing"),
        ({"user": "a", "password": "b", "auth": ("c", "d")}, "auth: give it"),
    ],
)
def test_what_a_client_cannot_be_made_of(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        Propeller(**given)


def test_a_stack_elsewhere_has_the_guides_ports() -> None:
    with Propeller(url="fleet.example", coordinator="https://other:1/") as fl:
        assert fl.url("manager") == "http://fleet.example:7070"
        assert fl.url("coordinator") == "https://other:1"
        assert fl.url("identity") == "http://fleet.example:9002"
        assert repr(fl) == "<Propeller of https://other:1>"
    with Propeller(url="https://[::1]") as fl:
        assert fl.url("data_store") == "https://[::1]:8083"


def test_nothing_answers() -> None:
    with (
        Propeller(coordinator="http://127.0.0.1:9") as fl,
        pytest.raises(UnavailableError, match="is the stack running"),
    ):
        fl.experiments()


async def test_the_same_in_an_event_loop(stack: FakeStack) -> None:
    async with AsyncPropeller(**stack.urls()) as fl:
        handle = await fl.run(experiment(model={"w": np.ones(2)}))
        stack.happen("state", state="running")
        stack.happen("update", number=1)
        stack.breaks_after = [1]
        kinds = []
        async for event in handle.events():
            kinds.append(event.kind)
            if event.kind == "update":
                stack.happen("state", state="completed")
        assert kinds == ["state", "update", "state"]
        assert (await handle.wait()).state == "completed"
        stack.history = HISTORY
        assert (await handle.history()).metric_names() == ["loss", "accuracy"]
        assert (await handle.model(0))["w"].tolist() == [1.0, 2.0]
        assert repr(handle) == "<AsyncExperimentHandle exp: completed, 0 of 2 rounds>"
        assert repr(await fl.experiment("exp")) == "<AsyncExperimentHandle exp: completed, 1 of 2 rounds>"
        with pytest.raises(NotFoundError):
            await fl.experiment("nope")
