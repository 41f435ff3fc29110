"""Requests to an OCI registry as nobody means them: generated from its table of routes, with parts that fit and parts that do not."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import strategies as st
from starlette.routing import BaseRoute, Route

from propeller.digests import digest_of
from propeller.oci.manifest import EMPTY, EMPTY_CONFIG, IMAGE_INDEX, IMAGE_MANIFEST, WASM, Descriptor
from support.registries import wasm

CONTENTS = (EMPTY, wasm(200), b"")
_DIGESTS = [digest_of(content) for content in CONTENTS]

_TEXT = st.text(st.characters(), max_size=9)
"""Also halves of surrogate pairs, which JSON can write and UTF-8 cannot."""

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


def _mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nine times of ten the good one: a request with several parts gets past its first check."""
    return st.integers(0, 9).flatmap(lambda chance: good if chance else bad)


_DIGEST = _mostly(
    st.sampled_from(_DIGESTS),
    st.sampled_from(["", "sha256:", f"sha256:{'A' * 64}", f"sha256:{'0' * 64}", "sha512:00"])
    | st.text(max_size=9),
)
_NAME = _mostly(
    st.sampled_from(["a", "a/b", "a/blobs/uploads", "a/manifests/v1"]),
    st.sampled_from(["A", "", ".", "..", "a" * 300]) | st.text(max_size=12),
)
_TAG = _mostly(
    st.sampled_from(["v1", "latest"]), st.sampled_from(["-", ".", "a" * 129]) | st.text(max_size=12)
)
_COUNT = _mostly(
    st.sampled_from(["0", "1", "9"]), st.sampled_from(["-1", "x", "9" * 30, "٣"]) | st.text(max_size=5)
)
_DESCRIPTOR = _mostly(
    st.sampled_from(
        [Descriptor.of(WASM, CONTENTS[1]).to_json(), Descriptor.of(EMPTY_CONFIG, EMPTY).to_json()]
    ),
    st.fixed_dictionaries({"digest": _DIGEST}, optional={"size": ANYTHING, "mediaType": ANYTHING}) | ANYTHING,
)
_MEDIA_TYPE = _mostly(
    st.just(IMAGE_MANIFEST), st.sampled_from([IMAGE_INDEX, "application/json", "a/b; c=d", "\x00", "text"])
)


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Bodies of manifests: some that are whole, most with something wrong, and some that are none."""
    document = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "schemaVersion": st.just(2) | ANYTHING,
                "mediaType": _mostly(_MEDIA_TYPE, ANYTHING),
                "artifactType": _mostly(st.text(max_size=9), ANYTHING),
                "config": _DESCRIPTOR,
                "layers": _mostly(st.lists(_DESCRIPTOR, max_size=3), ANYTHING),
                "manifests": _mostly(st.lists(_DESCRIPTOR, max_size=2), ANYTHING),
                "subject": _DESCRIPTOR,
                "annotations": st.dictionaries(_TEXT, _TEXT, max_size=2) | ANYTHING,
            },
        )
    )
    body = json.dumps(document, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(body)))
        return body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 9)) :]
    return body


_HEADERS = {
    "content-type": _MEDIA_TYPE.filter(str.isprintable),
    "content-range": st.sampled_from(["0-0", "0-199", "bytes 0-7", "5-1", "9" * 40, "x"]),
    "range": st.sampled_from(
        ["bytes=0-0", "bytes=5-1", "bytes=-", "bytes=0-,1-,2-", "bytes=999-", "x=1", "bytes=-0"]
    ),
    "accept": st.sampled_from([IMAGE_MANIFEST, "*/*", "text/html"]),
}
_QUERY = {
    "digest": _DIGEST,
    "mount": _DIGEST,
    "from": _NAME,
    "n": _COUNT,
    "last": _TAG,
    "artifactType": _TAG,
    "after": _COUNT,
    "limit": _COUNT,
}


def _operations(routes: Sequence[BaseRoute]) -> st.SearchStrategy[tuple[str, str]]:
    found = [
        (method, route.path)
        for route in routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
    ]
    changes = [one for one in found if one[0] not in {"GET", "HEAD"}]
    return st.sampled_from(changes) | st.sampled_from(found)


@st.composite
def requests(draw: st.DrawFn, routes: Sequence[BaseRoute], uploads: Sequence[str]) -> dict[str, Any]:
    """A request, as ``httpx.Client.request`` takes it; ``uploads`` are ids of those that were begun."""
    method, path = draw(_operations(routes))
    kinds = {
        "{name:path}": _NAME,
        "{target}": _TAG | _DIGEST,
        "{digest}": _DIGEST,
        "{upload}": _mostly(st.sampled_from([*uploads, "0" * 32]), st.just("..") | st.text(max_size=9)),
    }
    for parameter, kind in kinds.items():
        if parameter in path:
            text = draw(kind)
            # Dots are written out: clients take "." and ".." for folders.
            path = path.replace(parameter, quote(text, safe="/:", errors="replace").replace(".", "%2E"))
    body = b""
    if method in {"PUT", "POST", "PATCH"}:
        body = draw(manifests() if "manifests" in path else st.sampled_from(CONTENTS))
    return {
        "method": method,
        "url": path,
        "params": draw(st.fixed_dictionaries({}, optional=_QUERY)),
        "headers": draw(st.fixed_dictionaries({}, optional=_HEADERS)),
        "content": body,
    }


async def try_requests(
    data: st.DataObject,
    routes: Sequence[BaseRoute],
    send: Callable[..., Awaitable[httpx.Response]],
    count: int = 8,
) -> None:
    """Send some requests, one after the other; fail if an answer is none that the specification knows."""
    uploads: list[str] = []
    for _ in range(count):
        request = data.draw(requests(routes, uploads[-3:]))
        answer = await send(**request)
        assert answer.status_code < 500, (request, answer.text)
        if answer.status_code >= 400 and request["method"] != "HEAD":
            assert [set(error) for error in answer.json()["errors"]] == [{"code", "message"}], (
                request,
                answer.text,
            )
        if upload := answer.headers.get("docker-upload-uuid"):
            uploads.append(upload)
