"""Join tokens: what is written is read, and what is not whole is refused."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import InvalidError
from propeller.protocol.join_tokens import NOT_WHOLE, JoinToken, hash_secret, new_secret

TOKEN = JoinToken("https://fleet.example:9002", bytes(range(16)), bytes(32))

urls = st.builds(
    lambda scheme, host, port: f"{scheme}://{host}:{port}",
    st.sampled_from(["http", "https"]),
    st.text(string.ascii_lowercase, min_size=1),
    st.integers(1, 65535),
)


@given(urls, st.binary(min_size=16, max_size=16), st.none() | st.binary(min_size=32, max_size=32))
def test_what_is_written_is_read(url: str, secret: bytes, fingerprint: bytes | None) -> None:
    token = JoinToken(url, secret, fingerprint)
    word = token.encode()
    assert JoinToken.decode(f" {word}\n") == token
    assert set(word) <= set(string.ascii_letters + string.digits + "-_")
    assert word[0].isalpha()  # a command takes it for no option


@given(st.data())
def test_a_slip_of_copying_is_noticed(data: st.DataObject) -> None:
    word = TOKEN.encode()
    at = data.draw(st.integers(0, len(word) - 1))
    cut = data.draw(st.sampled_from([word[:at], word[at + 1 :], f"{word[:at]}.{word[at:]}"]))
    with pytest.raises(InvalidError, match="not all of it"):
        JoinToken.decode(cut)


@given(st.text(max_size=200))
def test_another_word_is_none(text: str) -> None:
    with pytest.raises(InvalidError):
        JoinToken.decode(text)


def test_a_token_of_another_version_says_so() -> None:
    import hashlib

    content = b"\x02" + bytes(16) + b"\x00http://a"
    whole = content + hashlib.sha256(content).digest()[:4]
    with pytest.raises(InvalidError, match="install the version that the stack has"):
        JoinToken.decode(base64.urlsafe_b64encode(whole).decode())
    no_address = b"\x01" + bytes(16) + b"\x00\xff"
    whole = no_address + hashlib.sha256(no_address).digest()[:4]
    with pytest.raises(InvalidError, match=NOT_WHOLE[:20]):
        JoinToken.decode(base64.urlsafe_b64encode(whole).decode())


def test_secrets_are_not_shown_and_differ() -> None:
    assert "secret" not in repr(TOKEN)
    assert len({new_secret() for _ in range(100)}) == 100
    assert hash_secret(bytes(16)) != hash_secret(bytes(15) + b"\1")
