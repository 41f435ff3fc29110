"""Which requests are for this service, and which a page of another site has a browser send."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import RefusedError
from propeller.web.sites import Sites, host_name

HERE = "127.0.0.1"


def check(method: str = "GET", *, address: str = HERE, names: str = "", **headers: str) -> None:
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    Sites(names.split(",")).check(method, sent, address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:7070",
        "127.0.0.1",
        "localhost:7070",
        "LOCALHOST",
        "localhost.",
        "[::1]:7070",
        socket.gethostname(),
    ],
)
def test_own_names(host: str) -> None:
    check(host=host)
    check("POST", host=host)
    check("POST", host=host, origin=f"http://{host}")
    check()  # one without a name is no browser's


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7070", "127.0.0.1.evil.example", "[::2]", "10.0.0.1"]
)
def test_foreign_names(host: str) -> None:
    with pytest.raises(
        RefusedError, match=r"is not a name of this service: use its address, or add .* PROPELLER_HOSTS"
    ):
        check(host=host)


def test_names_that_are_given() -> None:
    check(host="fleet.example:80", names="other, Fleet.example")
    check(host="anything", names="*")
    check(host="192.0.2.7:7070", address="192.0.2.7")
    with pytest.raises(RefusedError):  # localhost is a name of loopback alone
        check(host="localhost", address="192.0.2.7")


@pytest.mark.parametrize(
    "told",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000"},  # another service of this machine
        {"origin": "http://localhost:7070"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_pages_of_other_sites_change_nothing(told: dict[str, str]) -> None:
    check("GET", host="127.0.0.1:7070", **told)
    for method in ("POST", "PUT", "PATCH", "DELETE", "ANYTHING"):
        with pytest.raises(RefusedError, match=f"a page of another site .* may not {method} here"):
            check(method, host="127.0.0.1:7070", **told)


def test_pages_of_the_service_itself() -> None:
    for told in (
        {"origin": "https://127.0.0.1:7070"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ):
        check("POST", host="127.0.0.1:7070", **told)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_whatever_is_sent_is_served_or_refused(host: bytes, origin: bytes) -> None:
    served = host == b"" or host_name(host.decode("latin-1")) in {
        "localhost",
        HERE,
        "::1",
        socket.gethostname().lower(),
    }
    own = origin.partition(b"://")[2] == host
    with (
        contextlib.nullcontext()
        if served and own
        else pytest.raises(RefusedError, match=r"Host is|another site")
    ):
        Sites().check("POST", {b"host": host, b"origin": origin}, HERE)
