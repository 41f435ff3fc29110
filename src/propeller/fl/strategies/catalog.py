"""Which strategies there are: by name, with their parameters checked and described."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from propeller.errors import InvalidError
from propeller.fl.strategies.bagging import Bagging
from propeller.fl.strategies.clipping import NormClipping
from propeller.fl.strategies.fedavg import FedAvg
from propeller.fl.strategies.fedbuff import FedBuff
from propeller.fl.strategies.fednova import FedNova
from propeller.fl.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from propeller.fl.strategies.fedprox import FedProx
from propeller.fl.strategies.geometric_median import GeometricMedian
from propeller.fl.strategies.krum import Bulyan, Krum, MultiKrum
from propeller.fl.strategies.order import FedMedian, TrimmedMean
from propeller.fl.strategies.personal import Ditto, FedBN, FedPer
from propeller.fl.strategies.qfedavg import QFedAvg
from propeller.fl.strategies.scaffold import Scaffold
from propeller.fl.strategies.strategy import Mode, Strategy
from propeller.fl.strategies.sum import Sum
from propeller.protocol.strict import nearest_names

ENTRY_POINTS = "propeller.strategies"
"""The entry-point group in which an installed package names strategies of its own."""

_BUILT_IN: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        FedAvg,
        FedAvgM,
        FedAdagrad,
        FedAdam,
        FedYogi,
        FedProx,
        FedNova,
        Scaffold,
        QFedAvg,
        FedMedian,
        TrimmedMean,
        GeometricMedian,
        Krum,
        MultiKrum,
        Bulyan,
        NormClipping,
        FedBuff,
        Ditto,
        FedBN,
        FedPer,
        Sum,
        Bagging,
    )
}
"""In the order of the documentation."""

_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
"""The bounds of JSON schemas, which pydantic writes."""


class UnknownStrategyError(InvalidError):
    """No strategy has this name; the text lists those there are."""


class StrategyLoadError(InvalidError):
    """An installed package names a strategy that cannot be loaded; the text names the package and the reason."""


class ParameterError(InvalidError):
    """A strategy has no such parameter, or it is out of its range; the text names it as ``strategy.PARAMETER``."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a strategy.

    Attributes:
        name: as experiment files have it.
        type: what it takes: ``number``, ``integer``, …
        default: what it is otherwise; ``None`` where ``required``.
        required: whether it must be given.
        range: ``> 0, ≤ 1`` for example; empty for any.
        description: what it does.
    """

    name: str
    type: str
    default: Any
    required: bool
    range: str
    description: str


@dataclass(frozen=True)
class Description:
    """A strategy for people: errors, the command line and the documentation are made of it.

    Attributes:
        name: as experiment files have it.
        summary: the first line of its documentation.
        paper: where it is from.
        parameters: what can be set.
        needs_device_state: whether devices must keep something from round to round, with default parameters.
        modes: the modes of experiments that it is for.
    """

    name: str
    summary: str
    paper: str
    parameters: tuple[Parameter, ...]
    needs_device_state: bool
    modes: tuple[Mode, ...]

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {
            **asdict(self),
            "parameters": [asdict(each) for each in self.parameters],
            "modes": list(self.modes),
        }


def create_strategy(name: str, params: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy by name: a built-in one, or one of the entry-point group ``propeller.strategies``.

    Args:
        name: its name.
        params: its parameters; those left out have their defaults.

    Raises:
        UnknownStrategyError: there is none of that name.
        StrategyLoadError: the package that has it cannot be loaded.
        ParameterError: a parameter is unknown or out of its range.
    """
    kind = _find(name)
    try:
        return kind.model_validate(dict(params or {}))
    except ValidationError as error:
        raise ParameterError(
            "; ".join(_explain(kind, item) for item in error.errors(include_url=False))
        ) from None


def read_strategy(spec: Any) -> Strategy:
    """A strategy as an experiment has it: a name, or an object of ``name`` and parameters.

    Raises:
        InvalidError: as ``create_strategy``; or it is neither, or an object without a name.
    """
    if isinstance(spec, str):
        return create_strategy(spec)
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        return create_strategy(spec["name"], {name: value for name, value in spec.items() if name != "name"})
    raise ParameterError('strategy: must be a name, or an object such as {"name": "fedavg"}')


def strategy_names() -> list[str]:
    """The names of all strategies, built in and installed."""
    return [*_BUILT_IN, *(name for name in sorted(_installed()) if name not in _BUILT_IN)]


def describe_strategies() -> list[Description]:
    """All strategies, the built-in ones first.

    Raises:
        StrategyLoadError: a package that has one cannot be loaded.
    """
    return [describe_strategy(name) for name in strategy_names()]


def describe_strategy(name: str) -> Description:
    """One strategy for people.

    Raises:
        UnknownStrategyError, StrategyLoadError: as ``create_strategy``.
    """
    kind = _find(name)
    schema = kind.model_json_schema()["properties"]
    parameters = tuple(
        Parameter(
            parameter,
            _type_name(schema[parameter]),
            _default(info),
            info.is_required(),
            _range(schema[parameter]),
            info.description or "",
        )
        for parameter, info in _parameters(kind).items()
    )
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    modes = get_args(Mode) if kind.only_mode is None else (kind.only_mode,)
    return Description(name, summary, kind.paper, parameters, kind.keeps_device_state, modes)


def _default(info: FieldInfo) -> Any:
    """``None`` where there is none, and for an empty list."""
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return None if default == () else default


def _parameters(kind: type[Strategy]) -> dict[str, FieldInfo]:
    """The parameters as experiment files name them; what all strategies have comes last."""
    found = {info.alias or field: info for field, info in kind.model_fields.items()}
    return dict(sorted(found.items(), key=lambda item: item[0] in Strategy.model_fields))


def _find(name: str) -> type[Strategy]:
    built_in = _BUILT_IN.get(name)
    if built_in is not None:
        return built_in
    installed = _installed().get(name)
    if installed is not None:
        return _load(installed)
    names = strategy_names()
    raise UnknownStrategyError(
        f"strategy {name[:80]!r} is not known{_hint(name, names)}; there are {', '.join(names)}"
    )


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load(point: EntryPoint) -> type[Strategy]:
    package = point.dist.name if point.dist else "an installed package"
    try:
        kind = point.load()
    except Exception as error:  # whatever the module of a stranger raises
        raise StrategyLoadError(
            f"strategy {point.name!r} ({point.value} of {package}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    fault = _fault(kind, point.name)
    if fault is not None:
        raise StrategyLoadError(f"strategy {point.name!r}: {point.value} of {package} {fault}")
    found: type[Strategy] = kind
    return found


def _fault(kind: Any, name: str) -> str | None:
    """What keeps the class of a stranger from being a strategy, so that no round finds out."""
    if not (isinstance(kind, type) and issubclass(kind, Strategy)) or getattr(kind, "name", None) != name:
        return f"must be a subclass of propeller.fl.strategies.Strategy whose `name` is {name!r}"
    return next(_faults(kind), None)


def _faults(kind: type[Strategy]) -> Iterator[str]:
    if not isinstance(getattr(kind, "paper", None), str):
        yield "must say where it is from, as `paper: ClassVar[str]`"
    if kind.only_mode not in {None, *get_args(Mode)}:
        yield f"has `only_mode` {kind.only_mode!r}, which must be 'sync' or 'async'"
    if kind.__abstractmethods__:
        yield f"must have the method {', '.join(sorted(kind.__abstractmethods__))}"
    if kind.rows and kind.combine is Strategy.combine:
        yield "has `rows`, so it must have the method combine"
    if not kind.rows and kind.combine is not Strategy.combine:
        yield "has the method combine, which is called only if `rows` is true"


def _explain(kind: type[Strategy], item: Any) -> str:
    if not item["loc"]:
        return f"strategy: {kind.name}: {item['msg'].removeprefix('Value error, ')}"
    field = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        names = _parameters(kind)
        return f"strategy.{field[:80]}: {kind.name} has no such parameter{_hint(field, names)}; it has {', '.join(names)}"
    if item["type"] == "missing":
        return f"strategy.{field}: {kind.name} needs it: {_parameters(kind)[field].description}"
    where = ".".join(str(step)[:80] for step in item["loc"])
    allowed = _range(kind.model_json_schema()["properties"].get(field, {}))
    valid = f" (valid: {allowed})" if allowed else ""
    return f"strategy.{where}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r:.80}{valid}"


def _hint(name: str, names: Iterable[str]) -> str:
    near = nearest_names(name, names)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _type_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_name(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    return {"array": "list of text", "string": "text", "boolean": "true or false"}.get(kind, kind)


def _range(schema: Mapping[str, Any]) -> str:
    options = [schema, *schema.get("anyOf", ())]
    return ", ".join(
        f"{sign} {option[bound]:g}"
        for option in options
        for bound, sign in _BOUNDS.items()
        if bound in option
    )
