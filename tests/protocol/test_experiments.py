"""What a person may ask for: defaults, the exact round trip, and each refusal by the field's path with the way out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.protocol.experiments import ExperimentSpec, Mode, canonical_json, default_name
from propeller.protocol.schedules import Schedule
from propeller.protocol.selection import SelectionPolicy
from propeller.protocol.strict import nearest_names
from propeller.protocol.wire import MalformedMessageError

LEAST = {"program": "localhost:5000/fl/logreg:v1", "rounds": 3}


def spec(**fields: Any) -> ExperimentSpec:
    return ExperimentSpec.decode({**LEAST, **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(MalformedMessageError) as caught:
        spec(**fields)
    return str(caught.value)


def test_the_least_experiment_has_every_default() -> None:
    assert spec().to_json() == {
        **LEAST,
        "name": "logreg",
        "strategy": {"name": "fedavg"},
        "selection": {"over_select": 0.0, "tags": [], "seed": 0, "cooldown_rounds": 0},
        "min_updates": 1,
        "timeout_s": 60.0,
        "retries": 2,
        "stop": {},
        "hyperparams": {},
        "mode": {"kind": "sync"},
        "data": {},
        "update": {"kind": "weights", "compression": "none", "max_samples": 10**9, "max_steps": 10**9},
    }


def test_everything_that_the_contract_names_is_read() -> None:
    full = spec(
        id="mnist-1",
        name="mnist",
        strategy={"name": "fedadam", "lr": 0.1, "beta_1": None, "of": [1, "x"]},
        selection={"fraction": 0.5, "over_select": 0.25, "tags": ["gpu"], "min_available": 4, "seed": 7},
        k_of_n=2,
        min_updates=2,
        timeout_s=30,
        retries=0,
        evaluate={"every": 2, "on": "central", "dataset": "test"},
        stop={"metric": "val_loss", "target": 0.1, "patience": 5, "max_time_s": 600},
        model={"version": "production"},
        hyperparams={
            "lr": {"schedule": "cosine", "start": 1, "end": 0.01, "rounds": 2},
            "batch": {"schedule": "step", "values": {"1": 8, "3": 16}},
            "layers": [3, {"kept": None}],
            "nothing": None,
        },
        limits={"fuel": 1000},
        data={"split": {"holdout": 0.2}},
        update={"kind": "delta"},
    )
    assert full.strategy.params == {"lr": 0.1, "beta_1": None, "of": [1, "x"]}
    assert full.stop.goal == "min"
    assert isinstance(full.hyperparams["lr"], Schedule)
    assert full.hyperparams["layers"] == [3, {"kept": None}]
    assert full.to_json()["hyperparams"]["nothing"] is None
    assert ExperimentSpec.decode(json.dumps(full.to_json())) == full


def test_a_text_stands_for_the_name_of_a_strategy_or_the_kind_of_a_mode() -> None:
    assert spec(strategy="krum", mode="sync") == spec(strategy={"name": "krum"}, mode={"kind": "sync"})
    assert spec(mode="async").mode.to_json() == {
        "kind": "async",
        "buffer": 3,
        "concurrency": 6,
        "max_staleness": 10,
    }
    assert spec(mode={"kind": "async", "buffer": 5}).mode.concurrency == 10


@pytest.mark.parametrize("mode", ["async", {"kind": "async", "buffer": 2}, Mode(kind="async")])
def test_an_asynchronous_experiment_without_a_strategy_is_fedbuff(mode: Any) -> None:
    assert spec(mode=mode).strategy.name == spec(mode=mode, strategy=None).strategy.name == "fedbuff"
    assert spec(mode=mode, strategy="fedavg").strategy.name == "fedavg"


def test_an_id_may_have_dots_and_numbers_that_no_round_ends_in() -> None:
    for name in ("a.1b", "v1.2-rc", "a.b", "a.x3", "1"):
        assert spec(id=name).id == name


def test_null_is_as_good_as_nothing() -> None:
    assert spec(selection=None, stop={"metric": None}, id=None, name=None, mode={"kind": None}) == spec()


@pytest.mark.parametrize(
    ("goal", "metrics"),
    [
        (
            "min",
            "Loss val_error valLoss logloss RMSE mse val/mae perplexity cross_entropy error_rate brier_score",
        ),
        ("max", "accuracy top5_accuracy acc F1Score f1 r2 ROC_AUC bleu4 mAP50 val-iou recall"),
    ],
)
def test_the_goal_follows_from_the_name_of_the_metric(goal: str, metrics: str) -> None:
    for metric in metrics.split():
        assert (metric, spec(stop={"metric": metric}).stop.goal) == (metric, goal)
        assert spec(stop={"metric": metric, "goal": "max"}).stop.goal == "max"


@pytest.mark.parametrize(
    "metric", ["speed", "a", "accuracy_loss", "neg_mean_squared_error", "inaccuracy", "_"]
)
def test_a_metric_whose_name_says_nothing_needs_a_goal(metric: str) -> None:
    assert refusal(stop={"metric": metric}).startswith(
        f'stop: goal is missing: the name {metric!r} does not say what is better; add goal = "max" or'
    )
    assert spec(stop={"metric": metric, "goal": "min"}).stop.goal == "min"


def test_a_misspelt_metric_is_hinted_at() -> None:
    assert refusal(stop={"metric": "val_acuracy"}).endswith("\"min\"; or did you mean 'accuracy'?")


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("localhost:5000/fl/logreg:v1", "logreg"),
        ("ghcr.io/a/b@sha256:" + "0" * 64, "b"),
        ("My_Program:v1", "my_program"),
        ("..:v1", "experiment"),
        ("x/" + "a" * 99, "a" * 64),
    ],
)
def test_an_experiment_is_named_after_its_program(program: str, name: str) -> None:
    assert default_name(program) == name
    assert spec(program=program).name == name


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"round": 3}, "round: there is no such field; did you mean 'rounds'? There are data, evaluate,"),
        ({"image": "x"}, "image: there is no such field; did you mean 'program'?"),
        ({"zzz": 1}, "zzz: there is no such field; there are data, evaluate,"),
        (
            {"selection": {"fration": 0.1}},
            "selection.fration: there is no such field; did you mean 'fraction'? There are cooldown_rounds, count,",
        ),
        ({"evaluate": {"evry": 1}}, "evaluate.evry: there is no such field; did you mean 'every'?"),
        (
            {"data": {"split": {"holdout": 0.1, "sed": 1}}},
            "data.split.sed: there is no such field; did you mean 'seed'?",
        ),
        (
            {"hyperparams": {"lr": {"schedule": "linear", "start": 1, "ende": 0}}},
            "hyperparams.lr.ende: there is no such field; did you mean 'end'?",
        ),
        ({"selection": 3}, "selection: must be a table of cooldown_rounds, count,"),
        ({"data": {"split": 0.2}}, "data.split: must be a table of holdout, seed"),
    ],
)
def test_an_unknown_field_is_refused_by_its_path_with_the_names_that_there_are(
    fields: dict[str, Any], text: str
) -> None:
    assert refusal(**fields).startswith(text)


def test_every_wrong_field_is_named_up_to_a_bound() -> None:
    text = refusal(rounds=0, k_of_n="3", **{f"x{i}": 1 for i in range(20)})
    assert "rounds: Input should be greater than or equal to 1; k_of_n: " in text
    assert text.endswith("; and 12 more")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"selection": {"fraction": 0.5, "count": 2}}, "selection: fraction and count contradict each other"),
        (
            {"selection": {"count": 5, "min_available": 2}},
            "selection: min_available (2) is less than count (5): raise",
        ),
        ({"selection": {"over_select": 0.1}}, "selection: over_select needs count or fraction"),
        ({"selection": {"cooldown_rounds": 1}}, "selection: cooldown_rounds needs count or fraction"),
        ({"selection": {"names": ["a"], "over_select": 0.1}}, "selection: names and over_select contradict"),
        ({"selection": {"names": ["a"], "tags": ["t"]}}, "selection: names and tags contradict each other"),
        ({"selection": {"names": ["a"], "count": 2}}, "selection: count (2) is more than the 1 names"),
        (
            {"selection": {"names": ["a"], "min_available": 2}},
            "selection: min_available (2) is more than the 1 names",
        ),
        ({"selection": {"names": ["a", "a"]}}, "selection.names: named twice: a"),
        ({"k_of_n": 3, "selection": {"count": 2}}, "k_of_n (3) is more than selection.count (2): lower it"),
        (
            {"k_of_n": 3, "selection": {"names": ["a", "b"]}},
            "k_of_n (3) is more than selection.names (2): lower it",
        ),
        ({"k_of_n": 1, "min_updates": 2}, "min_updates (2) is more than k_of_n (1): lower it"),
        (
            {"min_updates": 3, "selection": {"count": 2}},
            "min_updates (3) is more than selection.count (2): lower it",
        ),
        ({"evaluate": {"on": "central"}}, "evaluate: dataset is missing"),
        ({"evaluate": {"dataset": "test"}}, 'evaluate: dataset is only for on = "central"'),
        (
            {"evaluate": {"on": "central", "dataset": "t", "fraction": 0.5}},
            'evaluate: fraction is only for on = "devices"',
        ),
        ({"evaluate": {"every": 4}}, "evaluate.every (4) is more than rounds (3): lower it, or leave it out"),
        ({"stop": {"patience": 2}}, "stop: patience needs metric"),
        ({"stop": {"target": 0.5}}, "stop: target needs metric"),
        ({"stop": {"goal": "min"}}, "stop: goal needs metric"),
        ({"mode": "async", "k_of_n": 2}, 'k_of_n and mode.kind = "async" contradict each other: mode.buffer'),
        ({"mode": "async", "min_updates": 2}, 'min_updates and mode.kind = "async" contradict each other'),
        ({"mode": "async", "selection": {"count": 2}}, 'selection.count and mode.kind = "async" contradict'),
        (
            {"mode": "async", "selection": {"names": ["a"]}},
            "mode.concurrency (6) is more than the 1 selection.names",
        ),
        ({"mode": {"buffer": 3}}, 'mode: buffer is only for kind = "async"'),
        ({"strategy": {}}, "strategy: give either name"),
        ({"strategy": {"name": "krum", "program": "x"}}, "strategy: give either name"),
        (
            {"strategy": "registry/mine:v1"},
            "strategy.name: 'registry/mine:v1' is not a name of a strategy, as \"fedavg\"; for a program that",
        ),
        (
            {"hyperparams": {"lr": {"schedule": "linear", "start": 1}}},
            "hyperparams.lr: linear needs start and end",
        ),
        (
            {"hyperparams": {"lr": {"schedule": "exponential", "start": 1, "end": 0}}},
            "hyperparams.lr: exponential needs a start and an end above 0",
        ),
        (
            {"hyperparams": {"lr": {"schedule": "linear", "start": 1, "end": 0, "values": {"1": 1}}}},
            'hyperparams.lr: values is only for schedule = "step"',
        ),
        (
            {"hyperparams": {"lr": {"schedule": "step", "values": {"2": 1}}}},
            'hyperparams.lr: values must have the value of round "1"',
        ),
        (
            {"hyperparams": {"lr": {"schedule": "step", "values": {"1": 1, "1.5": 1}}}},
            "hyperparams.lr: values: '1.5' is no round",
        ),
        (
            {"hyperparams": {"lr": {"schedule": "step", "values": {"1": 1}, "start": 1}}},
            "hyperparams.lr: step has values alone",
        ),
        (
            {"hyperparams": {"lr": {"schedule": "liner"}}},
            "hyperparams.lr.schedule: Input should be 'linear', ",
        ),
        ({"id": "a.3"}, "id: must not end in '.3', as ids of rounds do"),
        ({"id": "a.e3"}, "id: must not end in '.e3', as ids of rounds do"),
        ({"id": "a.1.2"}, "id: must not end in '.2'"),
        ({"id": "a" * 101}, "id: must have at most 100 characters"),
        ({"id": "a/b"}, "id: 'a/b' is not a valid id"),
        ({"name": "Big"}, "name: 'Big' is not a valid name"),
        ({"model": {"version": "7"}}, "model.version: must be a number, or an alias"),
        ({"model": {"version": "a/b/c"}}, "model.version: must be a number, or an alias"),
        ({"model": {"version": 1.5}}, "model.version: must be a number, or an alias"),
        ({"model": {"version": -1}}, "model.version: must be from 0"),
        ({"limits": {"fule": 1}}, "limits: 'fule' is no limit"),
        (
            {"update": {"compression": "zip"}},
            "update.compression: 'zip' is not known; there are none, zstd, ",
        ),
        (
            {"update": {"compression": "INT8"}},
            "update.compression: 'INT8' is not known; did you mean 'int8'? ",
        ),
        ({"update": {"compression": 8}}, "update.compression: must be one of none, zstd, float16, "),
        (
            {"update": {"compression": {"topk": 0.1}}},
            "update.compression.topk: there is no such field; did you mean 'top_k'?",
        ),
        (
            {"update": {"compression": {"top_k": 1.0}}},
            "update.compression.top_k: Input should be less than 1",
        ),
        (
            {"update": {"compression": {"values": "int2"}}},
            "update.compression.values: Input should be 'float32', 'float16',",
        ),
        (
            {"update": {"compression": {"zstd": True, "error_feedback": True}}},
            "update.compression: error_feedback needs a stage that loses something: give top_k, or values",
        ),
        ({"timeout_s": 0}, "timeout_s: Input should be greater than 0"),
        ({"selection": {"fraction": 0}}, "selection.fraction: Input should be greater than 0"),
        ({"rounds": True}, "rounds: Input should be a valid integer"),
        ({"rounds": "3"}, "rounds: Input should be a valid integer"),
        ({"rounds": 2.0}, "rounds: Input should be a valid integer"),
        ({"program": "a\nb"}, "program: must have no control characters"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_way_out(fields: dict[str, Any], text: str) -> None:
    assert refusal(**fields).startswith(text)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("timeout_s", lambda x: {"timeout_s": x}),
        ("selection.fraction", lambda x: {"selection": {"fraction": x}}),
        ("selection.over_select", lambda x: {"selection": {"count": 2, "over_select": x}}),
        ("evaluate.fraction", lambda x: {"evaluate": {"fraction": x}}),
        ("stop.target", lambda x: {"stop": {"metric": "acc", "target": x}}),
        ("stop.max_time_s", lambda x: {"stop": {"max_time_s": x}}),
        ("data.split.holdout", lambda x: {"data": {"split": {"holdout": x}}}),
        ("hyperparams.lr", lambda x: {"hyperparams": {"lr": x}}),
        ("hyperparams.lr", lambda x: {"hyperparams": {"lr": [{"deep": x}]}}),
        (
            "hyperparams.lr.start",
            lambda x: {"hyperparams": {"lr": {"schedule": "linear", "start": x, "end": 1}}},
        ),
        (
            "hyperparams.lr.values.1",
            lambda x: {"hyperparams": {"lr": {"schedule": "step", "values": {"1": x}}}},
        ),
        ("strategy.mu", lambda x: {"strategy": {"name": "fedprox", "mu": x}}),
    ],
)
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(path: str, fields: Any, number: float) -> None:
    text = refusal(**fields(number))
    assert text.startswith(f"{path}: ")
    assert "finite" in text or "than" in text


def test_json_that_python_alone_can_read_is_refused() -> None:
    with pytest.raises(MalformedMessageError, match="Invalid JSON"):
        ExperimentSpec.decode('{"program": "x", "rounds": 1, "timeout_s": NaN}')
    assert refusal(hyperparams={"when": object()}) == (
        "hyperparams.when: must be made of text, finite numbers, true, false, lists and tables"
    )
    assert refusal(hyperparams={"by": {1: 2}}) == "hyperparams.by: the names in a table must be texts"


def test_names_are_found_by_their_nearest() -> None:
    assert nearest_names("FedAvgg", ["fedavg", "krum", "FedAvgM"])[0] in {"fedavg", "FedAvgM"}
    assert nearest_names("zzz", ["fedavg"]) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
ramps = st.fixed_dictionaries(
    {"schedule": st.sampled_from(["linear", "cosine"]), "start": finite, "end": finite},
    optional={"rounds": st.integers(2, 100)},
)
steps = st.dictionaries(st.integers(2, 99).map(str), finite).map(
    lambda values: {"schedule": "step", "values": {"1": 0.5, **values}}
)
specs = st.fixed_dictionaries(
    {"program": st.sampled_from(["a", "r:5000/x/y:v1"]), "rounds": st.integers(5, 100_000)},
    optional={
        "strategy": st.sampled_from(["fedavg"])
        | st.dictionaries(st.sampled_from(["mu", "f"]), json_values).map(lambda p: {"name": "own", **p}),
        "selection": st.fixed_dictionaries(
            {},
            optional={"fraction": st.floats(0.01, 1), "seed": st.integers(0, 9), "tags": st.just(["x", "y"])},
        ),
        "k_of_n": st.integers(2, 5),
        "min_updates": st.integers(1, 2),
        "timeout_s": st.floats(0.001, 1000) | st.integers(1, 1000),
        "evaluate": st.fixed_dictionaries(
            {}, optional={"every": st.integers(1, 5), "fraction": st.floats(0.1, 1)}
        ),
        "stop": st.fixed_dictionaries(
            {"metric": st.sampled_from(["loss", "acc"])}, optional={"target": finite}
        ),
        "model": st.fixed_dictionaries({"version": st.integers(0, 99) | st.just("a/best")}),
        "hyperparams": st.dictionaries(st.text(max_size=5), json_values | ramps | steps, max_size=4),
        "data": st.just({"split": {"holdout": 0.25}}),
    },
)


@given(specs)
def test_the_round_trip_through_json_is_exact(fields: dict[str, Any]) -> None:
    one = ExperimentSpec.decode(fields)
    stored = json.dumps(one.to_json(), allow_nan=False)
    again = ExperimentSpec.decode(stored)
    assert again == one
    assert json.dumps(again.to_json()) == stored
    assert canonical_json(again) == canonical_json(one)


def test_a_policy_survives_the_wire_and_newer_senders() -> None:
    policy = SelectionPolicy(count=3, exclude=["a"], last_rounds={"b": 2}, seed=5)
    assert SelectionPolicy.decode(policy.encode()) == policy
    assert SelectionPolicy.decode({**policy.model_dump(), "newer": 1}) == policy


@pytest.mark.parametrize(
    ("short", "table", "text"),
    [
        ("none", {}, "none"),
        ("zstd", {"zstd": True}, "zstd"),
        ("int4", {"values": "int4", "zstd": True}, "int4 + zstd"),
        ("top_k", {"top_k": 0.01, "error_feedback": True, "zstd": True}, "top_k 0.01 + zstd"),
        ({"top_k": 0.1, "values": "int8", "zstd": False, "error_feedback": False}, None, "top_k 0.1 + int8"),
    ],
)
def test_a_compression_is_a_name_or_a_table(short: Any, table: dict[str, Any] | None, text: str) -> None:
    one = spec(update={"compression": short})
    if table is not None:
        assert spec(update={"compression": table}) == one
    assert str(one.update.compression) == text
    written = one.to_json()["update"]["compression"]
    assert (written == "none") == (text == "none")
    assert ExperimentSpec.decode(one.to_json()) == one
    assert one.update.for_devices() == (None if text == "none" else {"compression": written})
    delta = spec(update={"kind": "delta", "compression": short}).update.for_devices()
    assert delta == {"kind": "delta", **(one.update.for_devices() or {})}


def test_a_table_of_many_fields_is_refused_at_once() -> None:
    with pytest.raises(MalformedMessageError, match="has 1500 fields, of which there are data, evaluate,"):
        ExperimentSpec.decode({f"k{one}": 0 for one in range(1500)})
