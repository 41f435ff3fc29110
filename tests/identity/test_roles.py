"""Roles, topic filters as NATS subjects, and the small rules beside them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.identity.roles import CLIENT_ROLES, Grant, compat_of, permissions, role_of, subjects
from propeller.protocol.roles import Role
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


def test_who_is_a_compat_proplet() -> None:
    assert compat_of(Role.PROPLET, True, {}, [])
    assert compat_of(Role.PROPLET, None, {"compat": True}, [])
    assert compat_of(Role.PROPLET, None, {}, ["x", "compat"])
    assert not compat_of(Role.PROPLET, None, {}, ["x"])
    assert not compat_of(Role.PROPLET, False, {"compat": True}, ["compat"])
    assert not compat_of(Role.MANAGER, None, {}, [])
    with pytest.raises(ValueError, match="only proplets can be, this client is a manager"):
        compat_of(Role.MANAGER, True, {}, [])
    with pytest.raises(ValueError, match=r"metadata\.compat"):
        compat_of(Role.PROPLET, None, {"compat": "yes"}, [])


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


@given(
    IDS,
    st.sampled_from([role for role in CLIENT_ROLES if role not in {Role.OPERATOR, Role.VIEWER}]),
    st.booleans(),
    st.booleans(),
    IDS,
    IDS,
)
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
def test_two_proplets_share_no_topic_of_their_own(one: str, two: str) -> None:
    channel = Channel("d", "c")
    (said_one, heard_one), (said_two, heard_two) = (
        permissions(client, Role.PROPLET, [Grant(channel, True, True)]) for client in (one, two)
    )
    assert one == two or not set(said_one["allow"]) & set(said_two["allow"])
    shared = set(heard_one["allow"]) & set(heard_two["allow"])
    assert one == two or not shared & {
        subject
        for id_ in (one, two)
        for topic in (channel.start(id_), channel.stop(id_), channel.answers(id_))
        for subject in subjects(topic)
    }
