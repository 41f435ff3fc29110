"""Roles, topic filters as NATS subjects, and the small rules beside them."""

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from propeller.identity import claims
from propeller.identity.keys import Passwords, hash_key, key_matches, new_key
from propeller.identity.roles import Grant, Role, permissions, role_of, subjects
from propeller.identity.throttle import FAILURES, PAUSE_S, Throttle
from propeller.mqtt.broker_keys import BrokerKeys, derive
from propeller.protocol.topics import Channel

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("manager", "manager"),
        ("manager-2", "manager"),
        ("fl-coordinator", "coordinator"),
        ("coordinator", "coordinator"),
        ("proxy", "proxy"),
        ("proplet-1", "proplet"),
        ("proplet", "proplet"),
        ("managers", "device"),
        ("my-manager", "device"),
        ("proplet1", "device"),
        ("Proplet-1", "device"),
    ],
)
def test_names_give_roles(name: str, role: str) -> None:
    assert role_of(name, None, {}, []) == role


def test_a_given_role_wins() -> None:
    assert role_of("manager", "device", {"role": "proxy"}, ["role:proplet"]) is Role.DEVICE
    assert role_of("manager", None, {"role": "proxy"}, ["role:proplet"]) is Role.PROXY
    assert role_of("manager", None, {}, ["x", "role:proplet"]) is Role.PROPLET
    with pytest.raises(ValueError, match="role"):
        role_of("manager", None, {"role": ["proxy"]}, [])


@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [
        ("a/b", ["a.b"]),
        ("a/#", ["a", "a.>"]),
        ("a/+/c", ["a.*.c"]),
        ("a.b/c", ["a//b.c"]),
        ("m/d/c/x/#", ["m.d.c.x", "m.d.c.x.>"]),
    ],
)
def test_filters_become_subjects(topic_filter: str, expected: list[str]) -> None:
    assert subjects(topic_filter) == expected


@given(IDS, st.sampled_from(Role), st.booleans(), st.booleans(), IDS, IDS)
def test_no_permission_is_ever_an_empty_list(
    client: str, role: Role, publish: bool, subscribe: bool, domain: str, channel: str
) -> None:
    grants = [Grant(Channel(domain, channel), publish, subscribe)]
    for rights, given_ in zip(permissions(client, role, grants), (publish, subscribe), strict=True):
        assert rights.get("allow") or rights == {"deny": [">"]}
        assert bool(rights.get("allow")) == given_
        assert ">" not in rights.get("allow", [])
    assert permissions(client, role, []) == ({"deny": [">"]}, {"deny": [">"]})


@given(IDS, IDS)
def test_two_proplets_share_no_directed_topic(one: str, two: str) -> None:
    channel = Channel("d", "c")
    (_, heard_one), (_, heard_two) = (
        permissions(client, Role.PROPLET, [Grant(channel, True, True)]) for client in (one, two)
    )
    shared = set(heard_one["allow"]) & set(heard_two["allow"])
    assert one == two or not shared & {
        subject
        for id_ in (one, two)
        for topic in (channel.start(id_), channel.stop(id_))
        for subject in subjects(topic)
    }


def test_keys() -> None:
    key = new_key()
    assert key != new_key()
    assert key.isalnum()
    assert key_matches(key, hash_key(key))
    assert not key_matches(key + "0", hash_key(key))


def test_one_secret_gives_the_same_keys_everywhere() -> None:
    one, two, other = (BrokerKeys.derived(secret) for secret in ("a" * 16, "a" * 16, "b" * 16))
    assert one.issuer_public == two.issuer_public
    assert one.service_seed == two.service_seed
    assert one.issuer_public != other.issuer_public
    assert one.issuer_public[0] == "A"
    assert one.service_public[0] == "U"
    assert derive("a" * 16, "x") != derive("a" * 16, "y")


@given(st.dictionaries(st.text(), st.text()))
def test_claims_are_read_as_written(body: dict[str, str]) -> None:
    token = claims.encode(BrokerKeys.derived("a" * 16).issuer, {"nats": body})
    assert claims.decode(token.encode())["nats"] == body


@pytest.mark.parametrize(
    "token", [b"", b"a.b", b"a.b.c", b"a.!!.c", b"a.W10.c", b"a.eyJh.c", b"\xff.\xff.\xff"]
)
def test_garbage_is_not_claims(token: bytes) -> None:
    with pytest.raises(claims.MalformedClaimsError):
        claims.decode(token)


def test_throttle() -> None:
    now = 0.0
    throttle = Throttle(lambda: now)
    one, other = ("admin", "10.0.0.1"), ("admin", "10.0.0.2")
    for _ in range(FAILURES):
        assert throttle.wait_s(one) == 0
        throttle.failed(one)
    assert throttle.wait_s(one) == PAUSE_S
    assert throttle.wait_s(other) == 0
    now = PAUSE_S + 1
    assert throttle.wait_s(one) == 0
    throttle.failed(one)
    assert throttle.wait_s(one) == 0
    throttle.succeeded(one)
    assert throttle.wait_s(one) == 0


async def test_passwords() -> None:
    passwords = Passwords(PasswordHasher())  # the real one: it was imported before it was made cheap
    kept = await passwords.hash("correct horse")
    assert kept.startswith("$argon2id$v=19$m=65536,t=3")
    assert await passwords.matches("correct horse", kept)
    assert not await passwords.matches("wrong horse", kept)
    assert not await passwords.matches("correct horse", None)
