"""Ports: the guide's are refused when something else has one, free ones are all different."""

import socket

import pytest

from propeller.process.run import StartError
from propeller.stack import ports


def test_free_ports_are_all_different() -> None:
    found = ports.free_ports()
    assert set(found) == set(ports.GUIDE_PORTS)
    assert len(set(found.values())) == len(found)


def test_a_stack_keeps_the_ports_that_are_still_free() -> None:
    before = ports.free_ports()
    with socket.create_server(("127.0.0.1", before["broker"])):
        after = ports.free_ports(before)
    assert {name for name, port in after.items() if port != before[name]} == {"broker"}


def test_a_taken_port_is_named_with_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    free = ports.free_ports()
    monkeypatch.setattr(ports, "GUIDE_PORTS", free)
    assert ports.guide_ports() == free
    expected = rf"{free['manager']} \(manager\).*--ports auto"
    with socket.create_server(("127.0.0.1", free["manager"])), pytest.raises(StartError, match=expected):
        ports.guide_ports()
