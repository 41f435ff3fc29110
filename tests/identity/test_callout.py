"""The tokens that identity and nats-server send each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.identity.callout import MalformedClaimsError, decode_token, encode_token
from propeller.mqtt.broker_keys import BrokerKeys


@given(st.dictionaries(st.text(), st.text()))
def test_claims_are_read_as_written(body: dict[str, str]) -> None:
    token = encode_token(BrokerKeys.derived("a" * 16).issuer, {"nats": body})
    assert decode_token(token.encode())["nats"] == body


@pytest.mark.parametrize(
    "token", [b"", b"a.b", b"a.b.c", b"a.!!.c", b"a.W10.c", b"a.eyJh.c", b"\xff.\xff.\xff"]
)
def test_garbage_is_not_claims(token: bytes) -> None:
    with pytest.raises(MalformedClaimsError):
        decode_token(token)
