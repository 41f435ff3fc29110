"""Ports: the guide's are refused when something else has one, free ones are all different."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from propeller.errors import StartError
from propeller.stack import ports


@pytest.fixture
def reserved() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_free_ports_are_all_different(reserved: ExitStack) -> None:
    found = ports.free_ports(reserved)
    assert set(found) == set(ports.GUIDE_PORTS)
    assert len(set(found.values())) == len(found)


def test_a_stack_keeps_the_ports_that_are_still_free(reserved: ExitStack) -> None:
    with ExitStack() as earlier:
        before = ports.free_ports(earlier)
    with socket.create_server(("127.0.0.1", before["broker"])):
        after = ports.free_ports(reserved, before)
    assert {name for name, port in after.items() if port != before[name]} == {"broker"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port that is reserved cannot be listened on")
def test_a_port_that_is_reserved_is_for_its_service_and_no_other_stack(reserved: ExitStack) -> None:
    first = ports.free_ports(reserved)
    second = ports.free_ports(reserved, candidates=range(min(first.values()), max(first.values()) + 1))
    assert not set(first.values()) & set(second.values())
    for port in first.values():
        socket.create_server(("127.0.0.1", port)).close()


def test_a_taken_port_is_named_with_who_wants_it(reserved: ExitStack) -> None:
    with reserved:
        free = ports.free_ports(reserved)
    assert ports.guide_ports(free) == free
    expected = rf"{free['manager']} \(manager\).*--ports auto"
    with socket.create_server(("127.0.0.1", free["manager"])), pytest.raises(StartError, match=expected):
        ports.guide_ports(free)
