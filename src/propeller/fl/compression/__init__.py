"""Updates made smaller: the difference to the base model, sparse, in fewer bits, and what that cost; no I/O.

``update`` does all of an update or undoes it, a tensor at a time; ``values`` has the forms of numbers, ``sparsity`` which are sent.
"""

from propeller.fl.compression.description import Description, read_description
from propeller.fl.compression.scheme import VALUE_FORMS, Scheme, ValueForm
from propeller.fl.compression.update import (
    CompressedUpdate,
    EncodedUpdate,
    decode_update,
    encode_update,
    residual_specs,
)

__all__ = [
    "VALUE_FORMS",
    "CompressedUpdate",
    "Description",
    "EncodedUpdate",
    "Scheme",
    "ValueForm",
    "decode_update",
    "encode_update",
    "read_description",
    "residual_specs",
]
