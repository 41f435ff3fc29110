"""Content-Type and Accept."""

import numpy as np
import pytest

from propeller.errors import NotAcceptableError, UnsupportedTypeError
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS,
    decode,
    encode,
    negotiate,
    to_safetensors,
)

MODEL = {"w": np.array([1.0, 2.5])}


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("Application/Vnd.Safetensors", SAFETENSORS),
        ("application/x-safetensors", SAFETENSORS),
        ("application/vnd.safetensors, application/json;q=0.5", SAFETENSORS),
        ("application/json;q=0.5, application/vnd.safetensors;q=0.6", SAFETENSORS),
        ("application/json;q=0, */*", SAFETENSORS),
        ("text/html, application/*;q=0.1", JSON),
        ("application/vnd.safetensors;q=0.5, */*;q=0.4", SAFETENSORS),
        ("application/json;q=oops, application/vnd.safetensors;q=0.1", SAFETENSORS),
    ],
)
def test_the_best_of_what_is_accepted(accept: str | None, chosen: str) -> None:
    assert negotiate(accept) == chosen
    kind, body = encode(MODEL, accept)
    assert kind == chosen
    tensors, _metadata = decode(kind, body)
    np.testing.assert_array_equal(tensors["w"], MODEL["w"])


@pytest.mark.parametrize(
    "accept", ["text/html", "*/*;q=0", "application/json;q=0", "image/*", ",", "nonsense"]
)
def test_nothing_that_is_accepted(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match="application/json"):
        encode(MODEL, accept)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_json_under_its_names(kind: str | None) -> None:
    assert decode(kind, b'{"w":[1]}')[0]["w"].tolist() == [1.0]


def test_other_types() -> None:
    assert decode("application/vnd.safetensors;v=1", to_safetensors(MODEL))[0]["w"].tolist() == [1.0, 2.5]
    with pytest.raises(UnsupportedTypeError, match=r"application/vnd\.safetensors"):
        decode("text/plain", b"{}")
