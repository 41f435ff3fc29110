"""What a compressed update says of itself, in its document's metadata as ``compression``: which of its tensors stand for what."""

import json
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, TypeGuard

from propeller.fl.compression.scheme import VALUE_FORMS, ValueForm
from propeller.fl.tensors.base import TensorSpec
from propeller.fl.tensors.safetensors import check_long_text
from propeller.tensors.shapes import TensorError

FORMAT = 1
"""One that is not known is refused."""

_MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""


@dataclass(frozen=True)
class CompressedTensor:
    """A tensor that is sent as others.

    Attributes:
        name: in the base model.
        spec: what it is decoded to.
        form: of its numbers.
        kept: how many of them are sent, where that is not all.
    """

    name: str
    spec: TensorSpec
    form: ValueForm
    kept: int | None = None


@dataclass(frozen=True)
class Description:
    """What an update says of its compression.

    Attributes:
        tensors: the compressed ones: what belongs to the first ends in ``/0``.
        error: the norm of what is missing beside that of what was to be sent; ``None`` where that is beyond float64.
        uncompressed: the bytes that would have been sent without compression.
    """

    tensors: tuple[CompressedTensor, ...]
    error: float | None = None
    uncompressed: int = 0

    @property
    def stages(self) -> str:
        """What was done to the numbers, in a few words, as ``top_k + int8``."""
        forms = sorted({each.form for each in self.tensors} - {"float32"})
        sparse = any(each.kept is not None for each in self.tensors)
        return " + ".join([*(["top_k"] if sparse else []), *forms]) or "float32"

    def with_uncompressed(self, size: int) -> "Description":
        """It with the size in bytes that the update has without compression."""
        return replace(self, uncompressed=size)

    def to_text(self) -> str:
        """It as JSON; ``read_description`` reads it."""
        fields = {
            "format": FORMAT,
            "uncompressed": self.uncompressed,
            "error": None if self.error is None else float(f"{self.error:.6g}"),
            "tensors": [
                {
                    "name": each.name,
                    "dtype": each.spec.dtype,
                    "shape": list(each.spec.shape),
                    "values": each.form,
                    **({} if each.kept is None else {"kept": each.kept}),
                }
                for each in self.tensors
            ],
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_description(text: str) -> Description:
    """Read what an update says of its compression.

    Raises:
        TensorError: it is not what ``Description.to_text`` writes; the text names the field, and the tensor where there is one.
    """
    check_long_text("compression", text)
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise TensorError("compression: not JSON") from None
    if not isinstance(fields, dict):
        raise TensorError("compression: not an object")
    if fields.get("format") != FORMAT:
        found = str(fields.get("format"))[:20]
        raise TensorError(
            f"compression.format: {found} is not known here, {FORMAT} is: upgrade the coordinator"
        )
    error, uncompressed, tensors = fields.get("error"), fields.get("uncompressed"), fields.get("tensors")
    if error is not None and not _is_size(error):
        raise TensorError("compression.error: must be a finite number of 0 or more")
    if not _is_count(uncompressed):
        raise TensorError("compression.uncompressed: must be a number of bytes")
    if not isinstance(tensors, list):
        raise TensorError("compression.tensors: must be a list")
    read = tuple(_read_tensor(f"compression.tensors.{number}", each) for number, each in enumerate(tensors))
    seen: set[str] = set()
    for each in read:
        if each.name in seen:
            raise TensorError("is in compression.tensors twice", each.name)
        seen.add(each.name)
    return Description(read, None if error is None else float(error), uncompressed)


def _read_tensor(where: str, fields: Any) -> CompressedTensor:
    if not isinstance(fields, dict) or not isinstance(name := fields.get("name"), str):
        raise TensorError(f"{where}: must be an object with a name")
    dtype, shape, form, kept = (fields.get(field) for field in ("dtype", "shape", "values", "kept"))
    if dtype not in ("F32", "F64"):
        raise TensorError(f"{where}.dtype: must be F32 or F64", name)
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise TensorError(f"{where}.shape: must be a list of sizes", name)
    if form not in VALUE_FORMS:
        raise TensorError(f"{where}.values: must be one of {', '.join(VALUE_FORMS)}", name)
    if kept is not None and not _is_count(kept):
        raise TensorError(f"{where}.kept: must be how many numbers are sent", name)
    return CompressedTensor(name, TensorSpec(dtype, tuple(shape)), form, kept)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_INTEGER


def _is_size(value: Any) -> bool:
    return _is_count(value) or (type(value) is float and isfinite(value) and value >= 0)


def _refuse_constant(_constant: str) -> Any:
    raise ValueError
