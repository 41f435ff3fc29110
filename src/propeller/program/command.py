"""A program as a command: reads a task's files, calls the program's function, and writes its result (docs/programs.md)."""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

from propeller.metrics import DIVERGED, metric_fault
from propeller.program import aggregation
from propeller.program.context import Context
from propeller.program.data import TaskData
from propeller.program.device_state import TaskState
from propeller.program.library_arrays import given, taken
from propeller.program.local_strategy import LocalStrategy
from propeller.program.registry import Evaluation, Update, place_of_result, registered, result_of
from propeller.tensors import session
from propeller.tensors.array import Array
from propeller.tensors.functions import array
from propeller.tensors.shapes import HALVES, Spec, TensorError, is_floating

_MAX_INLINE_ELEMENTS = 256
"""Updates up to this size are in the document itself, where anyone can read them; larger ones in a file (docs/decisions/0197)."""

_RESULTS: dict[type[Any], tuple[str, str]] = {
    Update: ("train", "return Update(model, len(data), metrics)"),
    Evaluation: ("evaluate", "return Evaluation(len(data), metrics)"),
}
"""What each mode's function returns, and how it does."""

_LIBRARY_FRAMES = (f"{Path(__file__).parents[1]}/", "<frozen ")
_INSTALLED = ("/site-packages/", "/dist-packages/", "/lib/python3")


def run(root: Path = Path("/")) -> int:
    """Do the task that the environment and the files below ``root`` describe.

    Returns:
        The exit code; on 1 the last line of standard error says what went wrong, and where.
    """
    try:
        with redirect_stdout(sys.stderr):
            document = do_task(root, dict(os.environ))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the program does wrong
        explain(error)
        return 1
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
    return 0


def do_task(root: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Do the task that an environment describes; returns the document of its result.

    Raises:
        Exception: whatever the program, or what it is given, does wrong.
    """
    mode = environment.get("FL_MODE") or "train"
    if mode == aggregation.MODE:
        return aggregation.aggregate_task(root, environment)
    function = registered(mode)
    task = _Task(root, Context.of_task(root, environment))
    return task.evaluate(function) if mode == "evaluate" else task.train(function)


class _Task:
    """One training or evaluation: what the program's function is given, and what becomes of its result."""

    def __init__(self, root: Path, context: Context) -> None:
        self._root, self._context = root, context
        self._tape = session.current().main
        self._specs, self._columns = self._tape.describe_all("model", "data")
        self._strategy = LocalStrategy(context, self._specs, root)

    def train(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Train as the strategy wants it; returns the document of the update, whose tensors may be in a file beside it."""
        strategy = self._strategy
        context = replace(self._context, correct=strategy.correction())
        result = self._call(function, strategy.model(), context, Update)
        with result_of(function):
            return self._trained(function, context, result)

    def _trained(self, function: Callable[..., Any], context: Context, result: Update) -> dict[str, Any]:
        """The document of an update; the device's own model is trained for it, too, where the strategy has one."""
        strategy, model = self._strategy, self._match(result)
        steps = None if result.steps is None else _check_count("steps", result.steps)
        kind = _check_kind(result.kind)
        control = strategy.control_tensors(model, kind, steps, _check_rate(result.lr))
        strategy.keep_personal_tensors(model, kind)
        model, kind = strategy.in_kind(model, kind, context.update.get("kind", kind))
        document = self._document(result)
        if strategy.trains_twice:
            own: Update = self._call(
                function, strategy.second_model(), strategy.second_context(context), Update
            )
            second = self._match(own)
            if own.kind != "weights":
                raise ValueError(
                    "kind: the training of the device's own model (ctx.personal) returns weights"
                )
            strategy.keep_second_model(second)
            document["metrics"] |= {
                f"personal_{name}": value for name, value in _parse_metrics(own.metrics).items()
            }
        if strategy.is_ignored:
            sys.stderr.write(
                f"note: {self._context.strategy.get('name', 'the strategy')} adds to the gradients of local training, "
                "and this program called neither ctx.correct nor ctx.correct.penalty: it trained as for fedavg\n"
            )
        if strategy.asks_for_correction:
            document["corrected"] = not strategy.is_ignored
        if steps is not None:
            document["steps"] = steps
        if kind != "weights":
            document["kind"] = kind
        self._save_state()
        tensors = {name: model[name] for name in strategy.shared} if self._specs else model
        tensors |= control
        if sum(each.size for each in tensors.values()) <= _MAX_INLINE_ELEMENTS:
            self._tape.read_ahead(tensors.values())
            document["update"] = {name: each.tolist() for name, each in tensors.items()}
        else:
            self._tape.save(tensors)
        return document

    def evaluate(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Evaluate the model that this device would use; returns the document."""
        strategy = self._strategy
        model = strategy.second_model() if strategy.trains_twice else strategy.model()
        result = self._call(function, model, self._context, Evaluation)
        with result_of(function):
            if not result.metrics:
                raise ValueError("metrics: an evaluation has one or more")
            self._tape.read_ahead(_single_arrays(result.metrics))
            return self._document(result)

    def _match(self, result: Update) -> dict[str, Array]:
        """The tensors of an update, which are looked at, in dtypes that have all of their numbers."""
        matched = _match_model(_check_mapping("model", result.model), self._specs, self._strategy)
        remainders = _remainders(matched)
        self._tape.read_ahead([*remainders.values(), *_single_arrays(result.metrics)])
        for name, remainder in remainders.items():
            if not math.isfinite(float(remainder)):
                raise TensorError(f"the update's {name!r} has numbers that are not finite: {DIVERGED}")
        return matched

    def _call(
        self, function: Callable[..., Any], model: dict[str, Array], context: Context, expected: type[Any]
    ) -> Any:
        """Call the program's function, with data and hyperparameters that it may change."""
        text = context.environment.get("HYPERPARAMS") or _read_text(
            self._root / "in" / "hyperparams.json", "{}"
        )
        data = TaskData(self._columns, self._root / "in" / "dataset.json")
        model = {name: given(tensor) for name, tensor in model.items()}
        result = function(_Model(model), data, _Hyperparams(json.loads(text) or {}), context)
        with result_of(function):
            if not isinstance(result, expected):
                mode, remedy = _RESULTS[expected]
                found = "the model" if isinstance(result, _Model) else type(result).__name__
                raise TypeError(
                    f"{function.__name__} is marked with @{mode}: it returns an {expected.__name__}, not {found}: {remedy}"
                )
        return result

    def _document(self, result: Update | Evaluation) -> dict[str, Any]:
        return {
            "round_id": self._context.round_id,
            "proplet_id": self._context.proplet_id,
            "base_model_uri": self._context.model_uri,
            "num_samples": _check_count("num_samples", result.num_samples),
            "metrics": _parse_metrics(result.metrics),
        }

    def _save_state(self) -> None:
        if isinstance(self._context.state, TaskState):
            self._context.state.save()


class _Model(dict[str, Array]):
    """The base model; the error for a name that it lacks says which it has."""

    def __missing__(self, name: object) -> Array:
        raise TensorError(f"the model has no tensor {name!r}; it has {', '.join(self) or 'none'}")

    def __call__(self, *_inputs: object, **_options: object) -> Never:
        raise TensorError("the model is a dict of arrays: write net.apply(model, x) for model(x)")

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(
            f"the model is a dict of arrays by name and has no {name!r}: net.apply(model, x) computes with it"
        )


class _Hyperparams(dict[str, Any]):
    """The experiment's; the error for a name that they lack says which there are."""

    def __missing__(self, name: object) -> Never:
        raise KeyError(
            f"there is no hyperparameter {name!r}; the experiment sets {', '.join(self) or 'none'}: set it under [hyperparams], "
            f"or write hyperparams.get({name!r}, …)"
        )


def _read_text(file: Path, default: str) -> str:
    return file.read_text() if file.exists() else default


def _check_count(name: str, value: Any) -> int:
    number = value if isinstance(value, bool) or not hasattr(value, "__index__") else value.__index__()
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} is {value!r}; it is an integer of 1 or more")
    return number


def _check_rate(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"lr is {value!r}; it is a number above 0")
    return float(value)


def _check_kind(value: Any) -> str:
    if value not in {"weights", "delta"}:
        raise ValueError(f"kind is {value!r}; it is 'weights' or 'delta'")
    return str(value)


def _check_mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}; it is a dict by name")
    return value


def _parse_metrics(metrics: Any) -> dict[str, Any]:
    return {
        str(name): _parse_metric(name, value) for name, value in _check_mapping("metrics", metrics).items()
    }


def _parse_metric(name: Any, value: Any) -> Any:
    """A metric as JSON has it; an array of one element counts as its number.

    Raises:
        ValueError: It is no finite number.
    """
    if not isinstance(value, bool | str) and hasattr(value, "__float__") and not isinstance(value, int):
        try:
            value = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metrics: {str(name)[:80]!r} is not one number: {error}") from None
    if fault := metric_fault(str(name), value):
        raise ValueError(f"metrics: {fault}")
    return value


def _match_model(
    model: Mapping[str, Any], specs: dict[str, Spec], strategy: LocalStrategy
) -> dict[str, Array]:
    """The update's tensors in dtypes that lose none of their numbers; the coordinator gives them the base model's again.

    Those that are not trained may be missing, and are left out; those that are free are vectors of any length.

    Raises:
        TensorError: One is missing, unknown, or of another shape.
    """
    missing, unknown = sorted(set(specs) - set(model) - strategy.frozen), sorted(set(model) - set(specs))
    if specs and (missing or unknown):
        faults = []
        if missing:
            faults.append(f"lacks {', '.join(missing)}")
        if unknown:
            faults.append(f"has {', '.join(unknown)} beside it")
        remedy = "; what is to come back in the next round belongs in the first model" if unknown else ""
        raise TensorError(
            f"the update does not have the base model's names: it {' and '.join(faults)}{remedy}"
        )
    matched = {}
    for name, each in model.items():
        if name in strategy.frozen:
            continue
        dtype, shape = specs.get(name, (None, None))
        value = taken(each)
        tensor = value if isinstance(value, Array) else _exact_array(value, dtype)
        if name in strategy.free:
            if tensor.dtype != "uint8" or len(tensor.shape) != 1:
                raise TensorError(
                    f"the update's {name!r} is {tensor.dtype} of shape {list(tensor.shape)}: what has any length is a vector of bytes, "
                    "as pt.array(list(content), 'uint8')"
                )
        elif shape is not None and tensor.shape != shape:
            raise TensorError(
                f"the update's {name!r} has shape {list(tensor.shape)}, the base model's {list(shape)}"
            )
        # True and false are no numbers in JSON.
        as_number = tensor.dtype == "bool" and dtype not in {"bool", None}
        matched[name] = tensor.astype("uint8") if as_number else tensor
    return matched


def _remainders(model: Mapping[str, Array]) -> dict[str, Array]:
    """For each tensor of floats a number that is finite if all of them are."""
    floats = {
        name: tensor.astype("float32") if tensor.dtype in HALVES else tensor
        for name, tensor in model.items()
        if is_floating(tensor.dtype) or tensor.dtype in HALVES
    }
    return {name: (tensor * 0).sum() for name, tensor in floats.items()}


def _single_arrays(metrics: Any) -> list[Array]:
    """The metrics that are yet to be read, and can be."""
    values = metrics.values() if isinstance(metrics, Mapping) else ()
    main = session.current().main
    return [each for each in values if isinstance(each, Array) and each.tape is main and each.size == 1]


def _exact_array(values: Any, base: str | None) -> Array:
    """An array of what a program wrote as numbers or lists, in a dtype that has all of their digits."""
    made = array(values, base if base == "uint64" else None)
    return array(values, "float64") if made.dtype == "float32" and not hasattr(values, "dtype") else made


def explain(error: BaseException) -> None:
    """The traceback of the program's own code, and a last line that says all of it: where, what kind of error, and its text.

    Of a result that is not right the place is the function that returned it.
    """
    walked = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_LIBRARY_FRAMES)
    ]
    # By name alone: that is how a built program keeps its source, and paths of the build say nothing.
    frames = [
        traceback.FrameSummary(Path(code.co_filename).name, line, code.co_name) for code, line in walked
    ]
    kind, place = type(error).__name__, place_of_result(error)
    where = "" if place is None else f"{place}: "
    if frames:
        sys.stderr.write("Traceback (most recent call last):\n" + "".join(traceback.format_list(frames)))
        # A native program's libraries raise errors too: where they were called from says more.
        own = [
            frame
            for frame, (code, _) in zip(frames, walked, strict=True)
            if not any(part in code.co_filename for part in _INSTALLED)
        ]
        last = (own or frames)[-1]
        where = f"{last.filename}:{last.lineno}: "
    sys.stderr.write(f"{where}{kind}: {error}\n")
    sys.stderr.flush()
