"""What an update must be to count in its round."""

import asyncio
from collections.abc import Callable

import numpy as np

from propeller.coordinator.aggregation_requests import (
    RoundContribution,
    contribution_for_strategy,
    contribution_of,
    is_program,
)
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.large_updates import LargeUpdate, stands_for_large, write_document
from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.coordinator.updates import ReceivedUpdate, UpdateDocument, make_document
from propeller.errors import InvalidError
from propeller.fl.bounds import check_norm
from propeller.fl.strategies import read_strategy
from propeller.fl.tensors import DTYPES, Specs, Tensors, TensorSpec, from_safetensors
from propeller.process.files import Buffer, DurableFile
from propeller.protocol.aggregation import StrategyField
from propeller.protocol.bounds import UpdateBounds
from propeller.store.blobs import BlobStoreError
from propeller.store.documents import Document


async def check_update(
    record: RoundRecord, update: ReceivedUpdate, new_file: Callable[[], DurableFile], bases: BaseModels
) -> UpdateDocument | None:
    """Check what a participant sent, and make the document of it that is kept, to be closed; an evaluation has none.

    ``new_file`` gives a file for the document of a large update, ``bases`` the models that a norm is measured from.

    Raises:
        InvalidError: its tensors are malformed or do not fit the base model, or it lacks what the strategy needs.
        OutOfBoundsError: it is longer than its round allows.
    """
    document = await _make_document(record, update, new_file)
    if document is None or record.bounds.max_norm is None:
        return document
    try:
        base = await bases.tensors(record.round.plan.base_version)
        await asyncio.to_thread(_check_norm, record.bounds, update, document, base)
    except BaseException:
        document.close()
        raise
    return document


def _check_norm(
    bounds: UpdateBounds, update: ReceivedUpdate, document: UpdateDocument, base: Tensors
) -> None:
    content: Buffer
    if isinstance(document.content, DurableFile):
        document.content.stream.flush()
        content = Document(document.content.stream).map()
    else:
        content = document.content
    tensors = from_safetensors(content, finite=False)[0]
    check_norm(bounds, update.header.proplet_id, tensors, base, update.header.kind)


async def _make_document(
    record: RoundRecord, update: ReceivedUpdate, new_file: Callable[[], DurableFile]
) -> UpdateDocument | None:
    header = update.header
    if record.kind == "evaluate":
        if update.read_tensors is not None:
            raise InvalidError(f"update: round {header.round_id} evaluates; send metrics without an update")
        return None
    slot = record.round.plan.participants.index(header.proplet_id)
    accepted = AcceptedUpdate.of(header, "", 0, 0.0)
    check_contribution(record.strategy, contribution_of(accepted, slot))
    expected = update_specs(record.strategy, record.specs)
    if not isinstance(update, LargeUpdate) and not stands_for_large(update, expected):
        return await make_document(update, expected)
    file = new_file()
    try:
        return await asyncio.to_thread(write_document, update, expected, file)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise BlobStoreError(f"a large update cannot be written: {error.strerror}") from error
        raise


def update_specs(strategy: StrategyField, base: Specs) -> Specs:
    """What an update of a strategy's round must have: the base model's tensors but for personal ones, and ``@KIND/…`` ones.

    Raises:
        InvalidError: there is no such strategy.
    """
    if is_program(strategy):
        return base
    # Without memory: the strategy looks at dtypes and shapes alone.
    arrays = {
        name: np.broadcast_to(np.zeros((), DTYPES[spec.dtype]), spec.shape) for name, spec in base.items()
    }
    shapes = read_strategy(strategy).update_shapes(arrays)
    return {
        name: TensorSpec(base[name if name in base else name.partition("/")[2]].dtype, shape)
        for name, shape in shapes.items()
    }


def check_contribution(strategy: StrategyField, contribution: RoundContribution) -> None:
    """Check, when an update comes in, that it has what the strategy needs of it; programs need nothing that is known here.

    Raises:
        InvalidError: naming what is missing, and how a program reports it; or there is no such strategy.
    """
    if is_program(strategy):
        return
    read_strategy(strategy).check(contribution_for_strategy(contribution))
