"""What an experiment needs of its program."""

from collections.abc import Collection

from propeller.protocol.experiments import ExperimentSpec


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
