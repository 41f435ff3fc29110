"""A task's files in plain Python: the model in safetensors or JSON, the data in JSON, and the update in safetensors."""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from propeller.tensors import safetensors
from propeller.tensors.encoding import decode
from propeller.tensors.shapes import Spec, TensorError, elements, fits

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float32",
    "BF16": "float32",
    "F8_E4M3": "float32",
    "F8_E5M2": "float32",
    "I64": "int64",
    "I32": "int64",
    "I16": "int64",
    "I8": "int64",
    "U64": "uint64",
    "U32": "int64",
    "U16": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Programs' dtypes by the element types of safetensors, each of which holds every number of that type (docs/decisions/0131)."""

FORMATS = {
    "F64": "d",
    "F32": "f",
    "F16": "e",
    "I64": "q",
    "I32": "i",
    "I16": "h",
    "I8": "b",
    "U64": "Q",
    "U32": "I",
    "U16": "H",
    "U8": "B",
    "BOOL": "?",
}
"""Their formats in ``struct`` and NumPy, which name them alike; bfloat16 and the 8-bit floats have none."""


def _e4m3(bits: int) -> float:
    exponent, fraction = bits >> 3 & 15, bits & 7
    size = math.ldexp(fraction, -9) if not exponent else math.ldexp(8 + fraction, exponent - 10)
    return math.copysign(math.nan if bits & 127 == 127 else size, 127.5 - bits)


SMALL_FLOATS = {
    "F8_E4M3": tuple(map(_e4m3, range(256))),
    # The upper half of a float16.
    "F8_E5M2": tuple(struct.unpack("<e", bytes([0, bits]))[0] for bits in range(256)),
}
"""The 256 numbers of each 8-bit float, by its bits (Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433)."""

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "uint64": "U64",
    "uint8": "U8",
    "bool": "BOOL",
}
"""The element types of safetensors that programs write."""

_FILE_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
"""What a program may call a source or a file: a plain name, never a path."""

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)

STATE_FOLDER = "state"
"""Where device state is, below a task's root; it is there in tasks that have some."""

DEVICE_STATE = "device-state"
"""The source and the result of its arrays."""

STATE_TENSORS = "tensors.safetensors"
"""Their file in that folder."""


Source = dict[str, tuple[Spec, Callable[[], Any]]]
"""The tensors of a source by name: the spec of each, and what reads its elements."""


class TaskFiles:
    """The files below a root: ``in/model.safetensors`` or ``in/model.json``, ``in/dataset.json``, ``state/`` and ``out/``.

    Any other source ``NAME`` is ``in/NAME.safetensors``.
    """

    def __init__(
        self, root: Path, given: Mapping[str, Source] | None = None, inputs: Path | None = None
    ) -> None:
        """Args: root: of the files; given: sources that are in none of them; inputs: ``in``, where it is elsewhere."""
        self._root, self._inputs = root, inputs or root / "in"
        self._sources: dict[str, Source] = dict(given or {})

    def contents(self, source: str) -> dict[str, Spec]:
        """The tensors of a source.

        Raises:
            TensorError: There is no such source, or its file cannot be read.
        """
        return {name: spec for name, (spec, _) in self._load(source).items()}

    def fetch(self, source: str, name: str) -> Any:
        """The elements of a tensor."""
        return self._load(source)[name][1]()

    def write(self, result: str, tensors: Mapping[str, tuple[bytes, Spec]]) -> None:
        """Write ``out/RESULT.safetensors``, or the device state, from little-endian elements.

        Raises:
            TensorError: The name is not a plain one.
        """
        if _FILE_NAME.fullmatch(result) is None:
            raise TensorError(f"{result!r:.40} cannot name a file: use small letters, digits and '-'")
        header, order = safetensors.write_header(
            {name: (_CODES[dtype], shape) for name, (_, (dtype, shape)) in tensors.items()}
        )
        path = self._state if result == DEVICE_STATE else self._root / "out" / f"{result}.safetensors"
        # Whatever the program left under that name is not followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_FOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(header)
            for name in order:
                file.write(tensors[name][0])

    def tensor(self, data: bytes, code: str, shape: tuple[int, ...]) -> Any:
        """The elements of a tensor from its bytes in safetensors, as its dtype in programs has them."""
        if code == "BF16":
            return list(decode(data, "bfloat16"))
        if code in SMALL_FLOATS:
            return [SMALL_FLOATS[code][bits] for bits in data]
        return list(struct.unpack(f"<{elements(shape)}{FORMATS[code]}", data))

    def columns(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Spec, Any]]:
        """The columns of the data."""
        return columns(samples)

    def _load(self, source: str) -> Source:
        if source not in self._sources:
            read = self._reader(source)
            try:
                self._sources[source] = read()
            except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
                raise TensorError(f"the {source} cannot be read: {error!s:.200}") from None
        return self._sources[source]

    def _reader(self, source: str) -> Callable[[], Source]:
        found = {"model": self._model, "data": self._data, DEVICE_STATE: self._device_state}.get(source)
        if found is not None:
            return found
        packed = self._inputs / f"{source}.safetensors"
        if _FILE_NAME.fullmatch(str(source)) is None or not packed.exists():
            raise TensorError(f"there is no source {source!r:.40}")
        return partial(self.packed, packed)

    @property
    def _state(self) -> Path:
        return self._root / STATE_FOLDER / STATE_TENSORS

    def _device_state(self) -> Source:
        return self.packed(self._state) if self._state.exists() else {}

    def _model(self) -> Source:
        packed = self._inputs / "model.safetensors"
        if packed.exists():
            return self.packed(packed)
        plain = self._inputs / "model.json"
        if not plain.exists():
            return {}
        document = json.loads(plain.read_text())
        return {name: self._single(name, value) for name, value in document.items() if name != "version"}

    def _data(self) -> Source:
        file = self._inputs / "dataset.json"
        if not file.exists():
            return {}
        found = self.columns(json.loads(file.read_bytes()).get("data") or [])
        return {name: (spec, partial(_given, elements)) for name, (spec, elements) in found.items()}

    def packed(self, file: Path) -> Source:
        """The tensors of a file in safetensors, each of which is read when it is used: a program may have more of them than memory."""
        with _open(file) as opened:
            prefix = opened.read(safetensors.PREFIX)
            head = prefix + opened.read(safetensors.header_length(prefix))
            header = safetensors.read_header(head, _check_dtype)
            header.check_length(os.fstat(opened.fileno()).st_size)
        found: Source = {}
        for name, entry in header.entries.items():
            at = (header.start + entry.begin, entry.end - entry.begin)
            found[name] = (
                (DTYPES[entry.dtype], entry.shape),
                partial(self._read_tensor, file, at, entry.dtype, entry.shape),
            )
        return found

    def _read_tensor(self, file: Path, at: tuple[int, int], code: str, shape: tuple[int, ...]) -> Any:
        start, length = at
        with _open(file) as opened:
            opened.seek(start)
            return self.tensor(opened.read(length), code, shape)

    def _single(self, name: str, value: Any) -> tuple[Spec, Callable[[], Any]]:
        """A tensor of a JSON model: float64, or bool where it is true and false."""
        flat: list[Any] = []
        shape = _measure(value, flat)
        if shape is None:
            raise TensorError(f"the model's tensor {name!r} is not numbers of one shape")
        code = "BOOL" if _dtype(flat) == "bool" else "F64"
        packed = struct.pack(f"<{len(flat)}{FORMATS[code]}", *flat)
        return (DTYPES[code], shape), partial(self.tensor, packed, code, shape)


def _open(file: Path) -> BinaryIO:
    """Open a file for reading; a link, as a program may leave in its state, is not followed."""
    return os.fdopen(os.open(file, os.O_RDONLY | _NO_FOLLOW), "rb")


def _given(elements: Any) -> Any:
    return elements


def _check_dtype(name: str, dtype: Any) -> None:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TensorError(f"the model's tensor {name!r} is {dtype}; programs take {', '.join(DTYPES)}")


def columns(samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Spec, list[Any]]]:
    """What samples have in common: each name whose values are numbers of one shape in every sample, with its spec and elements."""
    found = {}
    for name in samples[0] if samples else ():
        if all(name in sample for sample in samples):
            flat: list[Any] = []
            shapes = {_measure(sample[name], flat) for sample in samples}
            if len(shapes) == 1 and None not in shapes:
                shape = shapes.pop() or ()
                dtype = _dtype(flat)
                if dtype == "int64" and not all(fits(value, dtype) for value in flat):
                    continue
                values = [float(value) for value in flat] if dtype == "float32" else flat
                found[name] = ((dtype, (len(samples), *shape)), values)
    return found


def _measure(value: Any, flat: list[Any]) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers; None: they are not."""
    if isinstance(value, bool | int | float):
        flat.append(value)
        return ()
    if hasattr(value, "__array_interface__"):  # NumPy's, in a native run
        return _measure(value.tolist(), flat)
    if not isinstance(value, list):
        return None
    shapes = {_measure(each, flat) for each in value}
    if len(shapes) > 1 or None in shapes:
        return None
    return (len(value), *(shapes.pop() or () if shapes else ()))


def _dtype(flat: list[Any]) -> str:
    kinds = {type(value) for value in flat}
    if kinds == {bool}:
        return "bool"
    return "int64" if kinds and float not in kinds else "float32"
