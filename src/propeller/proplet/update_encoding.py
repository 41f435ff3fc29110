"""Compresses an update, in a process of its own (``wasm.host_calls``): the proplet itself never loads NumPy.

It imports no more than it needs, and no pydantic: the sandbox's template imports it, too.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from propeller.fl.compression import Scheme, encode_update, residual_specs
from propeller.fl.tensors import Specs, TensorError, Tensors, from_json, from_safetensors, specs_of
from propeller.fl.tensors.dtypes import DTYPES
from propeller.fl.tensors.safetensors import read_header
from propeller.proplet.update_files import ENCODED, MODEL, RESIDUAL, UPDATE, UPDATE_JSON
from propeller.tensors.safetensors import replace_metadata, write_header

ZSTD_LEVEL = 3
"""The library's default; its window of 2 MiB is within the 8 MiB that every decoder takes (RFC 9659)."""

_IN, _OUT = Path("in"), Path("out")


def encode(argument: str) -> str:
    """Compress the update in ``in/`` into ``out/encoded``, and write what is left for the next one to ``out/residual.safetensors``.

    Args:
        argument: JSON: ``scheme`` (the fields of ``Scheme``; null: the numbers stay as they are), ``zstd``, ``metadata`` (of a document in
            safetensors), and for a scheme ``seed``, ``is_difference`` and ``uncompressed`` (bytes).

    Returns:
        JSON: ``error``, the norm of what is missing beside that of what was to be sent, where it is known; ``residual_lost``, why
        what earlier updates left could not be added.

    Raises:
        TensorError: the update cannot be compressed; the text names the tensor.
    """
    fields = json.loads(argument)
    told: dict[str, Any] = {}
    parts = _as_it_is(fields["metadata"]) if fields["scheme"] is None else _compress_tensors(fields, told)
    _write(_OUT / ENCODED, parts, zstd=fields["zstd"])
    return json.dumps(told)


def _as_it_is(metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    file = _IN / UPDATE
    if not file.exists():
        yield _map(_IN / UPDATE_JSON)
        return
    document = _map(file)
    head, start = replace_metadata(document, metadata)
    yield head
    yield document[start:]


def _compress_tensors(fields: Mapping[str, Any], told: dict[str, Any]) -> Iterator[bytes | memoryview]:
    base, _ = from_safetensors(_map(_IN / MODEL), finite=False)
    file = _IN / UPDATE
    update = (
        from_safetensors(_map(file))[0]
        if file.exists()
        else from_json(json.loads((_IN / UPDATE_JSON).read_bytes())["update"], specs_of(base))
    )
    residual: Tensors = {}
    if (_IN / RESIDUAL).exists():
        try:
            residual, _ = from_safetensors(_map(_IN / RESIDUAL))
        except (
            TensorError
        ) as error:  # of a disk that is broken: better than no update for the rest of the experiment
            told["residual_lost"] = str(error)
    scheme = Scheme(**fields["scheme"])
    encoded = encode_update(
        update,
        base,
        scheme,
        fields["seed"],
        is_difference=fields["is_difference"],
        residual=residual,
        left=_map_new(_OUT / RESIDUAL, residual_specs(update, base)) if scheme.error_feedback else None,
    )
    told["error"] = encoded.description.error
    description = encoded.description.with_uncompressed(fields["uncompressed"]).to_text()
    return _document(encoded.tensors, {**fields["metadata"], "kind": "delta", "compression": description})


def _map(file: Path) -> memoryview:
    """A file's content, which is read from the disk as it is needed."""
    with file.open("rb") as opened:
        if not file.stat().st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _map_new(file: Path, specs: Specs) -> Tensors:
    """The arrays of a new document in a file: what is written to them goes to the disk, not into memory."""
    if not specs:
        return {}
    header, _ = write_header(specs)
    entries = read_header(header)
    with file.open("x+b") as opened:
        opened.write(header)
        opened.truncate(entries.length)
        opened.flush()
        whole = mmap.mmap(opened.fileno(), entries.length)
    return {
        name: np.frombuffer(
            whole, DTYPES[entry.dtype], math.prod(entry.shape), entries.start + entry.begin
        ).reshape(entry.shape)
        for name, entry in entries.entries.items()
    }


def _document(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """A safetensors document in pieces."""
    specs = specs_of(tensors)
    header, order = write_header(specs, metadata)
    yield header
    for name in order:
        array = tensors[name].astype(DTYPES[specs[name].dtype], order="C", copy=False)
        yield array.reshape(-1).view("u1").data


def _write(path: Path, parts: Iterator[bytes | memoryview], *, zstd: bool) -> None:
    with path.open("xb") as file:
        if not zstd:
            file.writelines(parts)
            return
        with zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(file, closefd=False) as writer:
            for part in parts:
                writer.write(part)
