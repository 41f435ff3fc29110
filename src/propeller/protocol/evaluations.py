"""What a program leaves that was asked to evaluate: one JSON document with metrics, and no update."""

from propeller.protocol.updates import UpdateHeader, read_update_fields
from propeller.protocol.wire import MalformedMessageError

EVALUATE = "evaluate"
"""The value of ``FL_MODE`` in a task that gives back metrics and no update."""

MAX_QUOTED_BYTES = 200
"""Of what is not a document, in the error."""

_TRAINED_INSTEAD = (
    "update: the task only evaluates (FL_MODE is evaluate), and the program gave back an update, as if it had been asked to "
    "train: have it read FL_MODE and give back num_samples and metrics alone, or take evaluate out of the experiment"
)


def read_evaluation(stdout: bytes, *, left_tensors: bool, round_id: str, proplet_id: str) -> UpdateHeader:
    """Read an evaluation.

    Args:
        stdout: the program's standard output.
        left_tensors: whether it wrote tensors beside it, as for an update.
        round_id: of the task.
        proplet_id: who ran it.

    Raises:
        MalformedMessageError: naming what is missing or wrong, and what to do about it.
    """
    try:
        fields = read_update_fields(stdout)
        trained = "update" in fields or left_tensors
        header = None if trained else UpdateHeader.decode(fields)
    except MalformedMessageError as error:
        raise MalformedMessageError(explain_output("evaluation", stdout, error)) from None
    if header is None:
        raise MalformedMessageError(_TRAINED_INSTEAD)
    if not header.metrics:
        others = ", ".join(f"{name!r} is {kind}" for name, kind in (header.metrics_left_out or {}).items())
        raise MalformedMessageError(
            "metrics: an evaluation has one or more; the program's document has none"
            + (f" that is a finite number: {others}" if others else "")
        )
    check_names("evaluation", header, round_id, proplet_id)
    return header


def explain_output(what: str, stdout: bytes, error: MalformedMessageError) -> str:
    """Why a program's standard output is not an update or an evaluation."""
    quoted = stdout[:MAX_QUOTED_BYTES].decode(errors="replace")
    return f"the program's standard output is not an {what}: {error}; it begins {quoted!r}"


def check_names(what: str, header: UpdateHeader, round_id: str | None, proplet_id: str) -> None:
    """See that an update or an evaluation is of the task's round and from who ran it.

    Raises:
        MalformedMessageError: it names others.
    """
    for name, found, expected in (
        ("round_id", header.round_id, round_id),
        ("proplet_id", header.proplet_id, proplet_id),
    ):
        if found != expected:
            raise MalformedMessageError(
                f"the program's {what} names the {name} {found!r}, the task's is {expected!r}"
            )
