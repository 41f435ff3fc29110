"""Strategies by name: parameters are checked and described, and installed packages add their own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.errors import InvalidError
from propeller.fl.strategies import (
    Contribution,
    ParameterError,
    StrategyLoadError,
    UnknownStrategyError,
    aggregate,
    create_strategy,
    describe_strategies,
    describe_strategy,
    read_strategy,
    strategy_names,
)
from support.strategies import REQUIRED, default_strategy

OWN = '''
"""A strategy of somebody else's."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from propeller.fl.strategies import Contribution, Measured, Plan, Strategy


class Loudest(Strategy):
    """The update of the device with the largest value of a metric."""

    name: ClassVar[str] = "loudest"
    paper: ClassVar[str] = "nowhere"

    metric: str = Field("accuracy", description="which metric")

    def plan(self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured) -> Plan:
        best = max(contributions, key=lambda one: one.metrics.get(self.metric, 0.0))
        return Plan([float(one is best) for one in contributions])
'''


def bad(line: str) -> str:
    """A strategy named ``bad`` with one more line in its class."""
    return f'{OWN}\n\nclass Bad(Loudest):\n    name: ClassVar[str] = "bad"\n    {line}\n'


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package with entry points, as pip leaves it: a module and a folder of metadata."""

    def write(module: str, source: str, **points: str) -> None:
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[propeller.strategies]", *lines, ""]))
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return write


def test_a_package_adds_a_strategy(install: Any) -> None:
    install("loud_strategies", OWN, loudest="loud_strategies:Loudest")
    assert strategy_names()[-1] == "loudest"
    assert describe_strategy("loudest").summary.startswith("The update of the device")
    strategy = create_strategy("loudest", {"metric": "volume", "personal": ["head.*"]})
    received = [
        (Contribution(slot, f"p-{slot}", 1, metrics={"volume": slot % 2}), {"w": np.array([float(slot)])})
        for slot in range(3)
    ]
    assert aggregate(strategy, {"w": np.zeros(1)}, None, received)[0]["w"].tolist() == [1.0]
    with pytest.raises(ParameterError, match=r"strategy.metrik: loudest has no .*mean 'metric'"):
        create_strategy("loudest", {"metrik": "volume"})


@pytest.mark.parametrize(
    ("source", "value", "named"),
    [
        (
            "import nowhere_to_be_found",
            "bad_strategies:Bad",
            "bad_strategies:Bad of bad_strategies.*nowhere_to_be_found",
        ),
        ("Bad = 3", "bad_strategies:Bad", "must be a subclass"),
        ("", "bad_strategies:Bad", "AttributeError"),
        (OWN, "bad_strategies:Loudest", "whose `name` is 'bad'"),
        (bad("rows: ClassVar[bool] = True"), "bad_strategies:Bad", "the method combine"),
        (
            bad("def combine(self, plan, rows): return rows[0]"),
            "bad_strategies:Bad",
            "only if `rows` is true",
        ),
        (bad('only_mode: ClassVar[str] = "waves"'), "bad_strategies:Bad", "must be 'sync' or 'async'"),
        (OWN.replace("loudest", "bad").replace("paper", "source"), "bad_strategies:Loudest", "`paper: "),
        (
            OWN.replace("loudest", "bad").replace("def plan", "def plans"),
            "bad_strategies:Loudest",
            "must have the method plan",
        ),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named_and_hinders_no_other(
    install: Any, source: str, value: str, named: str
) -> None:
    install("bad_strategies", source, bad=value)
    with pytest.raises(StrategyLoadError, match=named):
        create_strategy("bad")
    assert create_strategy("fedavg").name == "fedavg"


def test_a_package_cannot_replace_a_built_in_strategy(install: Any) -> None:
    install("other_fedavg", OWN, fedavg="other_fedavg:Loudest")
    assert strategy_names().count("fedavg") == 1
    assert type(create_strategy("fedavg")).__name__ == "FedAvg"


@pytest.mark.parametrize(
    ("spec", "kind", "named"),
    [
        ("fedadm", UnknownStrategyError, "'fedadm' is not known.*mean 'fedadam'.*fedavg, fedavgm"),
        (
            "FedAdam",
            UnknownStrategyError,
            "'FedAdam' is not known .did you mean 'fedadam'.*; there are fedavg, ",
        ),
        ("MultiKrum", UnknownStrategyError, "mean 'multi_krum'"),
        ("FedTrimmedAvg", UnknownStrategyError, "mean 'trimmed_mean'"),
        ({"name": "fedadam", "taw": 1}, ParameterError, "strategy.taw.*mean 'tau'.*it has .*beta_2"),
        ({"name": "fedadam", "tau": 0}, ParameterError, r"strategy.tau: .*got 0 \(valid: > 0\)"),
        ({"name": "fedadam", "tau": "1"}, ParameterError, "strategy.tau"),
        ({"name": "fedadam", "tau": True}, ParameterError, "strategy.tau"),
        ({"name": "fedadam", "tau": float("inf")}, ParameterError, "strategy.tau"),
        ({"name": "fedavgm", "momentum": 1}, ParameterError, r"strategy.momentum.*valid: ≥ 0, < 1"),
        ({"name": "trimmed_mean", "beta": 0.5}, ParameterError, r"strategy.beta.*valid: ≥ 0, < 0.5"),
        ({"name": "krum", "byzantine": -1}, ParameterError, r"strategy.byzantine.*valid: ≥ 0"),
        ({"name": "scaffold", "devices": 0}, ParameterError, r"strategy.devices.*valid: ≥ 1"),
        ({"name": "qfedavg"}, ParameterError, "strategy.lr: qfedavg needs it: the learning rate"),
        ({"name": "fedbn"}, ParameterError, "strategy.personal: fedbn needs it"),
        ({"name": "fedavg", "personal": [""]}, ParameterError, "strategy.personal.0"),
        ({"name": "fedavg", "personal": 3}, ParameterError, "strategy.personal"),
        ({"name": "fedavg", "weighting": "loss"}, ParameterError, "strategy.weighting.*samples"),
        ({"name": "ditto", "weight": 1.0}, ParameterError, "strategy.weight: .*it has .*lambda"),
        ({"nam": "fedavg"}, ParameterError, "strategy: must be a name"),
        (None, ParameterError, "strategy: must be a name"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_valid(spec: Any, kind: type[InvalidError], named: str) -> None:
    with pytest.raises(kind, match=named):
        read_strategy(spec)


def test_all_are_described() -> None:
    found = describe_strategies()
    assert [each.name for each in found] == strategy_names()
    for each in found:
        assert each.summary
        assert each.paper
        for parameter in each.parameters:
            assert parameter.description
            assert parameter.required == (parameter.name in REQUIRED.get(each.name, {}))
        assert each.parameters[-1].name == "personal"
        assert each.needs_device_state == (each.name in {"scaffold", "ditto", "fedbn", "fedper"})
        modes = {
            "fedbuff": ("async",),
            **dict.fromkeys(("fednova", "qfedavg", "scaffold", "sum", "bagging"), ("sync",)),
        }
        assert each.modes == modes.get(each.name, ("sync", "async"))
        assert default_strategy(each.name).name == each.name


def test_whole_numbers_are_numbers() -> None:
    strategy = read_strategy({"name": "fedprox", "mu": 1})
    assert strategy.for_devices({}) == {"name": "fedprox", "mu": 1.0}
    assert read_strategy("fedavg").for_devices({}) == {}
