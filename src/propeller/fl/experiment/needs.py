"""What an experiment needs: of its rounds and its model, for its strategy; and of its program."""

from collections.abc import Collection

from propeller.errors import InvalidError
from propeller.fl.strategies import Strategy, read_strategy
from propeller.protocol.experiments import ExperimentSpec


def fewest_updates(spec: ExperimentSpec) -> int:
    """How many updates a round needs: ``min_updates``, or what the strategy needs where that is more.

    A strategy whose package was removed since the experiment began asks for nothing here: whoever is to create the round
    finds that out and says so (``RoundRefused``).
    """
    strategy = _installed(spec)
    return spec.min_updates if strategy is None else max(spec.min_updates, strategy.min_updates)


def needs_device_state(spec: ExperimentSpec) -> bool:
    """Whether devices must keep something from round to round for the strategy; a program that aggregates does not say so."""
    strategy = _installed(spec)
    return strategy is not None and strategy.needs_device_state


def check_strategy(spec: ExperimentSpec) -> None:
    """Refuse a strategy that there is not, that is for the other mode, or that cannot work with rounds of this size.

    Raises:
        InvalidError: naming the field and what to do.
    """
    strategy = _built_in(spec)
    if strategy is None:
        return
    strategy.check_mode(spec.mode.kind)
    where = "selection.names" if spec.selection.count is None else "selection.count"
    buffer = spec.mode.buffer if spec.mode.kind == "async" else None
    for field, updates in ((where, spec.selection.most), ("k_of_n", spec.k_of_n), ("mode.buffer", buffer)):
        if updates is not None:
            strategy.check_size(field, updates)
    if strategy.free_patterns and spec.update.compression.is_lossy:
        raise InvalidError(
            f"update.compression: {strategy.name} sends bytes of any length, which only zstd compresses: use it, or none"
        )
    if strategy.free_patterns and spec.update.kind == "delta":
        raise InvalidError(f"update.kind: {strategy.name} sends bytes, which are no difference: leave it out")
    chosen = {"selection.fraction": spec.selection.fraction, "selection.count": spec.selection.count}
    for field, some in {**chosen, "k_of_n": spec.k_of_n, "mode.buffer": buffer}.items():
        if some is not None and (field != "selection.fraction" or some < 1):
            strategy.check_sampling(field)


def check_names(spec: ExperimentSpec, names: Collection[str]) -> None:
    """Refuse a strategy that names a tensor which the model has not.

    Args:
        spec: of the experiment.
        names: of the model's tensors.

    Raises:
        InvalidError: naming the field, the pattern and what there is.
    """
    strategy = _built_in(spec)
    if strategy is not None:
        strategy.check_names(names)


def explain_missing_functions(spec: ExperimentSpec, functions: Collection[str]) -> str | None:
    """Why a program cannot be used in an experiment; ``None`` if it has what is asked for.

    Args:
        spec: what was asked for.
        functions: those that the program's artifact says it has.
    """
    if "train" not in functions:
        return (
            f"program: {spec.program} has no function for training: mark one with @train of propeller.program"
        )
    if spec.evaluate is not None and "evaluate" not in functions:
        return (
            f"evaluate: {spec.program} has no function for evaluations: mark one with @evaluate of propeller.program, build "
            "and push it again, or leave evaluate out"
        )
    return None


def _installed(spec: ExperimentSpec) -> Strategy | None:
    """The strategy, unless it is a program, or was removed since the experiment began."""
    try:
        return _built_in(spec)
    except InvalidError:
        return None


def _built_in(spec: ExperimentSpec) -> Strategy | None:
    """The strategy, unless it is a program."""
    return None if spec.strategy.program is not None else read_strategy(spec.strategy.to_json())
