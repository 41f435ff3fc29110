"""Errors in one form whatever is sent, metrics under the route, an API page."""

import re

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from structlog.testing import capture_logs

from propeller.web.app import Router, create_app, etag_matches

JSON = {"content-type": "application/json"}
BODIES = [
    (b"{bad", "Invalid JSON: "),
    (b"", "body: Field required"),
    (b"[]", "Invalid JSON: expected an object, got list"),
    (b"\xff", "Invalid JSON: "),
    (b'{"round_id":"r","participants":["a"],"timeout_s":NaN}', "timeout_s: NaN is not a finite number"),
    (b'{"round_id":"r","participants":["a"],"timeout_s":1e999}', "timeout_s: a number is too large"),
    (b'{"round_id":"r"}', "participants: Field required"),
    (b'{"round_id":5,"participants":"a"}', "round_id: Input should be a valid string; participants: "),
    (b'{"round_id":"../r","participants":["a"]}', "round_id: '../r' is not a valid id"),
    (b'{"round_id":"r","participants":["a"],"k_of_n":2}', "k_of_n (2) is more than the 1 participants"),
    (b"[" * 50_000, "Invalid JSON: "),
]


@pytest.mark.parametrize("path", ["/direct", "/included/routed"])
@pytest.mark.parametrize(("body", "says"), BODIES)
async def test_a_bad_body_is_a_400_that_names_the_field(
    http: httpx.AsyncClient, path: str, body: bytes, says: str
) -> None:
    answer = await http.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]


@pytest.mark.parametrize("path", ["/direct", "/included/routed"])
@pytest.mark.parametrize("headers", [JSON, {"content-type": "application/json; charset=utf-8"}])
async def test_a_good_body(http: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    answer = await http.post(path, content=b'{"round_id":"r","participants":["a"]}', headers=headers)
    assert (answer.status_code, answer.text) == (200, '{"round_id":"r"}\n')


async def test_a_body_that_a_handler_reads_itself(http: httpx.AsyncClient) -> None:
    assert (await http.post("/raw", content=b"{}")).json() == {"fields": 0}
    answer = await http.post("/raw", content=b"{")
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/nowhere", 404, "no such path: /nowhere"),
        ("DELETE", "/direct", 405, "DELETE is not for /direct: use POST"),
        ("GET", "/things/a%20b", 400, "thing: 'a b' is not a valid id: use 1 to 128 letters"),
        ("GET", "/things/%2e%2e", 400, "thing: '..' is not a valid id"),
        ("GET", "/things/a?n=x", 400, "n: Input should be a valid integer"),
        ("GET", "/bad-id", 400, "'../x' is not a valid id"),
        ("GET", "/fails/conflict", 409, "it is there already"),
        ("GET", "/fails/missing", 404, "no model 7; GET /models lists them"),
        ("GET", "/fails/peer-404", 404, "no such model"),
        ("GET", "/fails/peer-401", 502, "registry answered 401: who are you"),
        ("GET", "/fails/peer-500", 502, "registry answered 500: oops"),
        ("GET", "/fails/peer-gone", 502, "registry cannot be reached: refused"),
        ("GET", "/fails/unforeseen", 500, "internal error: see the service's log"),
        ("GET", "/fails/full", 507, "the service's disk is full: free some space there"),
        ("GET", "/fails/full-store", 507, "the service's disk is full: free some space there"),
        ("GET", "/fails/broken-store", 503, "cannot write"),
        ("GET", "/fails/busy", 503, "no proplet is alive"),
        ("GET", "/fails/bad-answer", 500, "internal error: see the service's log"),
    ],
)
async def test_every_error_has_one_form(
    http: httpx.AsyncClient, method: str, path: str, status: int, error: str
) -> None:
    with capture_logs() as logs:
        answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)
    assert answer.headers["content-type"] == "application/json"
    failures = [line for line in logs if line["event"] == "request failed"]
    assert len(failures) == (1 if status in {500, 507} or path == "/fails/broken-store" else 0)
    assert all(line["path"] == path and line["exc_info"] for line in failures)


async def test_a_wrong_method_names_the_right_ones(http: httpx.AsyncClient) -> None:
    assert (await http.delete("/direct")).headers["allow"] == "POST"


async def test_an_included_router_must_read_strictly(app: FastAPI) -> None:
    with pytest.raises(TypeError, match=r"propeller\.web\.app\.Router"):
        app.include_router(APIRouter())


async def test_health_and_its_own_body(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).text == '{"status":"ok"}\n'
    own = create_app("x", health=lambda: {"status": "pass", "version": "1"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(own), base_url="http://x") as client:
        assert (await client.get("/health")).json() == {"status": "pass", "version": "1"}


async def test_metrics_count_under_the_route_and_not_under_the_path(http: httpx.AsyncClient) -> None:
    with capture_logs():
        for path in ("/things/a", "/things/b", "/nowhere", "/nowhere/else", "/fails/unforeseen"):
            await http.get(path)
    await http.post("/included/routed", content=b"{}", headers=JSON)
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = [line for line in answer.text.splitlines() if line.startswith("propeller_http_requests_total")]
    assert sorted(counted) == [
        'propeller_http_requests_total{method="GET",route="/fails/{how}",service="demo",status="500"} 1.0',
        'propeller_http_requests_total{method="GET",route="/things/{thing}",service="demo",status="200"} 2.0',
        'propeller_http_requests_total{method="GET",route="unmatched",service="demo",status="404"} 2.0',
        'propeller_http_requests_total{method="POST",route="/included/routed",service="demo",status="400"} 1.0',
    ]
    assert 'propeller_http_request_seconds_count{route="/things/{thing}",service="demo"} 2.0' in answer.text


async def test_the_api_page(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    assert schema["info"]["title"] == "Propeller demo"
    assert {"/direct", "/included/routed", "/things/{thing}"} <= set(schema["paths"])
    assert not {"/health", "/metrics"} & set(schema["paths"])
    page = await http.get("/docs")
    assert page.status_code == 200
    assert "'/openapi.json'" in page.text.replace('"', "'")


async def test_the_api_page_needs_no_other_machine(http: httpx.AsyncClient) -> None:
    """It is whole without internet, and no script of others acts in the reader's name."""
    page = (await http.get("/docs")).text
    assert "://" not in page
    parts = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert sorted(parts) == ["/docs/favicon.png", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"]
    for path in parts:
        part = await http.get(path)
        assert part.status_code == 200
        assert len(part.content) > 1000
        kind = {"js": "text/javascript", "css": "text/css", "png": "image/png"}[path.rpartition(".")[2]]
        assert part.headers["content-type"].startswith(kind)
    assert "SwaggerUIBundle" in (await http.get("/docs/swagger-ui-bundle.js")).text
    assert (await http.get("/redoc")).status_code == 404
    assert (await http.get("/docs/../app.py")).status_code == 404


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_json_is_read_only_where_it_is_announced(http: httpx.AsyncClient, kind: str | None) -> None:
    for path in ("/direct", "/included/routed"):
        answer = await http.post(
            path,
            content=b'{"round_id":"r","participants":["a"]}',
            headers={} if kind is None else {"content-type": kind},
        )
        assert answer.status_code == 415
        assert "curl -H 'Content-Type: application/json'" in answer.json()["error"]


@pytest.mark.parametrize("header", ['"a"', 'W/"a"', '"b", "a"', '"b" ,W/"a"', "*", ' "a" '])
def test_what_the_caller_has(header: str) -> None:
    assert etag_matches(header, '"a"')


@pytest.mark.parametrize("header", ["", "a", '"b"', '"ab"', 'x"a"', '"a"x', "**"])
def test_what_the_caller_has_not(header: str) -> None:
    assert not etag_matches(header, '"a"')


def test_every_operation_is_described_with_the_errors_that_it_may_answer_with() -> None:
    app = create_app("things")
    router = Router()

    @router.post("/things/{thing}")
    async def change(thing: str, body: dict[str, int]) -> dict[str, str]:
        return {thing: str(body)}

    @router.get("/things")
    async def raw() -> Response:
        return Response(b"[]", media_type="application/json")

    app.include_router(router)
    described = app.openapi()
    for path, method in (("/things/{thing}", "post"), ("/things", "get")):
        answers = described["paths"][path][method]["responses"]
        assert set(answers) == {"200", "4XX", "503"}
        assert answers["4XX"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Error"
        }
    assert (
        described["paths"]["/things"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        == {}
    )
    assert set(described["components"]["schemas"]) == {"Error"}
    assert described["components"]["schemas"]["Error"]["required"] == ["error"]
