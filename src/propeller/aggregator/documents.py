"""The documents of an aggregation: what comes in which order, and what their tensors must be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from propeller.errors import InvalidError, UnprocessableError
from propeller.fl.strategies import EXTRA, Contribution
from propeller.fl.tensors import Shapes, TensorError, Tensors, check_shapes, from_safetensors
from propeller.fl.tensors.safetensors import read_header
from propeller.process.files import Buffer
from propeller.protocol.aggregation import (
    PLAN_FIELD,
    RESULT_FIELD,
    AggregationPlan,
    AggregationResult,
)
from propeller.protocol.wire import MalformedMessageError, decode_trusted
from propeller.tensors.safetensors import write_header


@dataclass(frozen=True)
class Place:
    """Where a document belongs: the part, and the base model, the state or the contribution that it is of."""

    part: int
    base: int | None = None
    contribution: int | None = None

    @property
    def is_state(self) -> bool:
        """Whether it is the server state's."""
        return self.base is None and self.contribution is None


class DocumentOrder:
    """The order that a plan gives to the documents of its sequence."""

    def __init__(self, plan: AggregationPlan) -> None:
        self._plan = plan

    @property
    def total(self) -> int:
        """How many documents follow the plan."""
        return self._plan.parts * self._plan.documents_a_part

    def place(self, number: int) -> Place:
        """Where the ``number``-th document after the plan belongs, from 0.

        Raises:
            InvalidError: there should be no such document.
        """
        plan = self._plan
        if number >= self.total:
            raise InvalidError(
                f"plan: {self.total} documents are announced (parts {plan.parts}, bases {plan.bases}, "
                f"contributions {len(plan.contributions)}), and more came"
            )
        part, position = divmod(number, plan.documents_a_part)
        if position < plan.bases:
            return Place(part, base=position)
        position -= plan.bases
        if plan.state and position == 0:
            return Place(part)
        return Place(part, contribution=position - plan.state)

    def describe(self, number: int) -> str:
        """What a document is, for errors."""
        place = self.place(number)
        part = f" (part {place.part + 1} of {self._plan.parts})" if self._plan.parts > 1 else ""
        if place.base is not None:
            return f"base model {place.base}{part}"
        if place.contribution is None:
            return f"the server state{part}"
        sender = self._plan.contributions[place.contribution].proplet_id
        return f"update {place.contribution + 1} of {sender[:80]!r}{part}"

    def check_complete(self, came: int) -> None:
        """See that all documents came.

        Raises:
            InvalidError: the first that is missing.
        """
        if came < self.total:
            raise InvalidError(
                f"the stream ends after {came} of {self.total} documents: {self.describe(came)} is missing"
            )


def read_plan(document: Buffer) -> AggregationPlan:
    """The plan that a sequence begins with.

    Raises:
        InvalidError: there is none, or it is not valid; the text names the field.
    """
    try:
        header = read_header(document)
    except TensorError as error:
        raise InvalidError(f"the first document: {error}") from None
    text = header.metadata.get(PLAN_FIELD)
    if text is None or header.entries:
        raise InvalidError(
            f"the first document must have no tensors, and {PLAN_FIELD!r} in its __metadata__: see docs/reference.md, aggregator"
        )
    try:
        return AggregationPlan.decode(decode_trusted(text))
    except MalformedMessageError as error:
        raise InvalidError(f"plan: {error}") from None


def contributions_of(plan: AggregationPlan) -> list[Contribution]:
    """The contributions, as strategies know them."""
    return [
        Contribution(
            number if each.slot is None else each.slot,
            each.proplet_id,
            each.num_samples,
            each.steps,
            each.metrics,
            each.staleness,
            each.base,
            each.kind,
        )
        for number, each in enumerate(plan.contributions)
    ]


def write_result(result: AggregationResult) -> bytes:
    """The document that an answer begins with."""
    return header_document({RESULT_FIELD: json.dumps(result.model_dump(mode="json", exclude_none=True))})


def header_document(metadata: Mapping[str, str]) -> bytes:
    """A document without tensors."""
    return write_header({}, metadata)[0]


def read_tensors(document: Buffer, what: str, *, finite: bool = True) -> Tensors:
    """The tensors of a document, of which there may be none.

    Args:
        document: all of it.
        what: what it is, for error texts.
        finite: whether to look for NaN and infinities; strategies find those of updates themselves, in their sums.

    Raises:
        UnprocessableError: it is not one, or its numbers are not finite; the text begins with ``what``.
    """
    try:
        header = read_header(document)
        if not header.entries:
            header.check_length(len(document))
            return {}
        return from_safetensors(document, finite=finite)[0]
    except TensorError as error:
        raise UnprocessableError(f"{what}: {error}") from None


def check_update(tensors: Tensors, expected: Shapes, what: str, strategy: str) -> None:
    """Check an update's names and shapes against what the base model and the strategy ask for.

    Raises:
        UnprocessableError: naming the update, the tensor and what to do.
    """
    missing = [name for name in expected if name.startswith(EXTRA) and name not in tensors]
    if missing:
        raise UnprocessableError(
            f"{what}: {missing[0]!r} is missing: {strategy} needs it of every update; have the program correct its gradients "
            "with ctx.correct, which adds it (docs/programs.md), or choose another strategy"
        )
    try:
        check_shapes(tensors, expected)
    except TensorError as error:
        raise UnprocessableError(f"{what}: {error}") from None


def check_same_model(bases: Sequence[Tensors], what: str) -> None:
    """Check that the last of some base models has the names and shapes of the first.

    Raises:
        UnprocessableError: naming the tensor.
    """
    first: Any = {name: array.shape for name, array in bases[0].items()}
    try:
        check_shapes(bases[-1], first, "base model 0")
    except TensorError as error:
        raise UnprocessableError(f"{what}: {error}") from None
