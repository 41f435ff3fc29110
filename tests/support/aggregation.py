"""Requests for the aggregator as the coordinator makes them, and its answers."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from propeller.fl.tensors import SAFETENSORS_SEQ, Tensors, from_safetensors, read_documents, to_safetensors
from propeller.fl.tensors.safetensors import read_header
from propeller.tensors.safetensors import write_header

Update = tuple[dict[str, Any], Tensors]
"""The header of a contribution, and its tensors."""


def document(tensors: Tensors, **metadata: str) -> bytes:
    """A document, also one without tensors."""
    return to_safetensors(tensors, metadata) if tensors else write_header({}, metadata)[0]


def request_body(
    strategy: Any,
    bases: Sequence[Tensors],
    updates: Sequence[Update],
    *,
    state: Tensors | None = None,
    values: dict[str, Any] | None = None,
    parts: Sequence[Sequence[str]] | None = None,
    **more: Any,
) -> bytes:
    """The whole body: ``parts`` are names of the model's tensors; without them there is one part."""
    cut = [list(bases[0])] if parts is None else parts
    plan = {
        "strategy": strategy,
        "values": values or {},
        "contributions": [header for header, _tensors in updates],
        "parts": len(cut),
        "bases": len(bases),
        "state": state is not None,
        **more,
    }
    documents = [document({}, plan=json.dumps(plan))]
    for number, names in enumerate(cut):
        documents += [document(pick(base, names, first=not number)) for base in bases]
        documents += [] if state is None else [document(pick(state, names, first=not number))]
        documents += [document(pick(tensors, names, first=not number)) for _header, tensors in updates]
    return b"".join(documents)


def pick(tensors: Tensors, names: Sequence[str], *, first: bool) -> Tensors:
    """The tensors of a part; those that are of none of the model's tensors are in the first."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in names or name.partition("/")[2] in names or (first and name.startswith("!"))
    }


async def send(http: httpx.AsyncClient, body: bytes, *, piece: int = 70_001) -> httpx.Response:
    """Send a body in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece):
            yield body[start : start + piece]

    return await http.post("/aggregate", content=pieces(), headers={"content-type": SAFETENSORS_SEQ})


async def read_answer(answer: httpx.Response) -> tuple[dict[str, Any], Tensors, Tensors]:
    """The result, the model and the server state's tensors."""
    assert answer.status_code == 200, answer.text

    async def chunks() -> AsyncIterator[bytes]:
        yield answer.content

    documents = [bytes(each) async for each in read_documents(chunks())]
    result = json.loads(read_header(documents[0]).metadata["result"])
    tensors = [from_safetensors(each)[0] if read_header(each).entries else {} for each in documents[1:]]
    models = tensors[:: 1 + result["state"]]
    states = tensors[1::2] if result["state"] else []
    assert len(models) == result["parts"]
    return result, _together(models), _together(states)


def headers(count: int) -> list[dict[str, Any]]:
    """Headers of ``count`` contributions that have what any strategy asks for."""
    return [
        {
            "proplet_id": f"p-{number}",
            "num_samples": 10 + number,
            "steps": 2 + number,
            "metrics": {"loss": 0.5 + number, "loss_before": 0.75 + number},
        }
        for number in range(count)
    ]


def _together(parts: Sequence[Tensors]) -> Tensors:
    found: Tensors = {}
    for part in parts:
        assert not found.keys() & part.keys()
        found |= part
    return found
