"""Free ports: all different, free, and none that an outgoing connection may take."""

import socket

from propeller.stack.ports import GUIDE_PORTS, free_ports


def test_free_ports_differ_and_are_out_of_the_way_of_outgoing_connections() -> None:
    ports = free_ports()
    assert list(ports) == list(GUIDE_PORTS)
    assert len(set(ports.values())) == len(ports)
    for port in ports.values():
        assert port < 32768
        socket.create_server(("127.0.0.1", port)).close()
