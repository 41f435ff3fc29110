"""Bodies in parts, as RFC 9110, section 14 has them."""

import tempfile
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from propeller.web.ranges import PIECE_BYTES, Body, asked_ranges, respond

ETAG = '"abc"'


def asked(text: str, length: int = 10, condition: str = "") -> list[range] | None:
    headers = {"Range": text, **({"If-Range": condition} if condition else {})}
    return asked_ranges(Headers(headers), length, ETAG)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes=0-0", [range(1)]),
        ("bytes=0-", [range(10)]),
        ("bytes=2-5", [range(2, 6)]),
        ("bytes=8-99", [range(8, 10)]),
        ("bytes=-3", [range(7, 10)]),
        ("bytes=-99", [range(10)]),
        ("Bytes = 0-0 , -1", [range(1), range(9, 10)]),
        ("bytes=5-6,1-2,20-", [range(5, 7), range(1, 3)]),
        ("bytes=0-4,3-7", [range(5), range(3, 8)]),
        ("bytes=0-9,0-9", None),
        ("bytes=10-", []),
        ("bytes=-0", []),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=a-b", None),
        ("bytes=0-1;q=1", None),
        ("lines=0-1", None),
        ("", None),
        ("bytes=" + ",".join("0-0" for _ in range(17)), None),
    ],
)
def test_what_is_asked_for(text: str, found: list[range] | None) -> None:
    assert asked(text) == found


def test_a_condition_that_does_not_hold_asks_for_all() -> None:
    assert asked("bytes=0-0", condition=ETAG) == [range(1)]
    for other in ('"abd"', f"W/{ETAG}", "Wed, 25 Nov 2026 10:00:00 GMT"):
        assert asked("bytes=0-0", condition=other) is None


def test_an_empty_body_has_no_parts() -> None:
    assert asked("bytes=0-", 0) == []
    assert asked("bytes=-1", 0) == []


@given(
    head=st.binary(max_size=20),
    rest=st.binary(max_size=40) | st.just(bytes(range(256)) * (PIECE_BYTES // 200)),
    skipped=st.integers(0, 5),
    specs=st.lists(
        st.tuples(st.integers(0, 80) | st.just(PIECE_BYTES + 7), st.integers(0, 80)), min_size=1, max_size=3
    ),
)
async def test_the_parts_are_those_of_the_whole(
    head: bytes, rest: bytes, skipped: int, specs: list[tuple[int, int]]
) -> None:
    whole = head + rest
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rest"
        file.write_bytes(b"x" * skipped + rest)
        body = Body(head, len(whole), lambda: file.open("rb"), skipped)

        async def answer(request: Request) -> Response:
            return respond(body, asked_ranges(request.headers, len(whole), ETAG), {"ETag": ETAG}, "a/b")

        app = Starlette(routes=[Route("/", answer)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
            all_of_it = await http.get("/")
            assert all_of_it.status_code == 200
            assert all_of_it.content == whole
            assert all_of_it.headers["accept-ranges"] == "bytes"
            text = ",".join(f"{first}-{first + more}" for first, more in specs)
            found = await http.get("/", headers={"range": f"bytes={text}"})
    wanted = [
        (first, whole[first : first + more + 1]) for first, more in specs if whole[first : first + more + 1]
    ]
    if not wanted:
        assert found.status_code == 416
        assert found.headers["content-range"] == f"bytes */{len(whole)}"
        return
    if sum(len(part) for _first, part in wanted) > len(whole):
        assert found.status_code == 200
        assert found.content == whole
        return
    assert found.status_code == 206
    assert int(found.headers["content-length"]) == len(found.content)
    assert found.headers["etag"] == ETAG
    names = [f"bytes {first}-{first + len(part) - 1}/{len(whole)}" for first, part in wanted]
    if len(wanted) == 1:
        assert found.headers["content-range"] == names[0]
        assert found.content == wanted[0][1]
        return
    kind, _, boundary = found.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    line = f"\r\n--{boundary}"
    assert (
        found.content
        == b"".join(
            f"{line}\r\nContent-Type: a/b\r\nContent-Range: {name}\r\n\r\n".encode() + part
            for name, (_first, part) in zip(names, wanted, strict=True)
        )
        + f"{line}--\r\n".encode()
    )


async def test_a_file_that_is_gone_is_known_before_anything_is_sent(tmp_path: Path) -> None:
    body = Body(b"head", 10, lambda: (tmp_path / "gone").open("rb"))

    async def answer(_request: Request) -> Response:
        return respond(body, None, {}, "a/b")

    app = Starlette(routes=[Route("/", answer)])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        assert (await http.get("/")).status_code == 500
