"""Which credentials go where, and for how long."""

import httpx
import pytest

from propeller.oci.authorization import Authorizer, Purpose, Scope, parse_challenges
from propeller.oci.credentials import Login, Token
from propeller.oci.errors import RegistryLoginError
from propeller.oci.reference import Registry


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ('Basic realm="a, b"', {"basic": {"realm": "a, b"}}),
        ("Basic realm=a", {"basic": {"realm": "a"}}),
        (
            'Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"',
            {"bearer": {"realm": "https://a/token", "service": "s", "scope": "repository:x:pull,push"}},
        ),
        ('Basic realm="a", Bearer realm="b" , service=c', {"basic": {"realm": "a"}, "bearer": {"realm": "b", "service": "c"}}),
        ("Negotiate", {}),
    ],
)  # fmt: skip
def test_challenges(header: str, expected: dict[str, dict[str, str]]) -> None:
    assert parse_challenges(header) == expected


async def test_credentials_for_https_are_not_for_plain_http() -> None:
    scope, plain = Scope("u/x"), Registry("ghcr.io", plain_http=True)
    for credential in (Login("u", "p"), Token("t")):
        authorizer = Authorizer({"ghcr.io": credential})
        async with httpx.AsyncClient() as http:
            assert authorizer.cached_header(plain, scope) is None
            assert (
                await authorizer.answer_challenge(
                    lambda _url: http, Purpose(plain, scope, "x"), 'Basic realm="r"'
                )
                is None
            )
    assert Authorizer({"ghcr.io": Token("t")}).cached_header(Registry("ghcr.io"), scope) == "Bearer t"


async def test_credentials_do_not_go_to_a_token_server_without_tls() -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.url} was asked")

    authorizer = Authorizer({"ghcr.io": Login("user", "password")})
    async with httpx.AsyncClient(transport=httpx.MockTransport(nobody)) as http:
        for realm in ("http://evil.example/token", "file:///etc/passwd", ""):
            purpose = Purpose(Registry("ghcr.io"), Scope("u/x"), "x")
            with pytest.raises(RegistryLoginError, match="not HTTPS"):
                await authorizer.answer_challenge(lambda _url: http, purpose, f'Bearer realm="{realm}"')


async def test_a_token_is_used_until_shortly_before_it_expires() -> None:
    def give_token(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"token": "t", "expires_in": 60})

    now = 1000.0
    authorizer = Authorizer({}, clock=lambda: now)
    purpose = Purpose(Registry("ghcr.io"), Scope("u/x"), "x")
    async with httpx.AsyncClient(transport=httpx.MockTransport(give_token)) as http:
        challenge = 'Bearer realm="https://ghcr.io/token"'
        assert await authorizer.answer_challenge(lambda _url: http, purpose, challenge) == "Bearer t"
    now += 49
    assert authorizer.cached_header(purpose.registry, purpose.scope) == "Bearer t"
    now += 2
    assert authorizer.cached_header(purpose.registry, purpose.scope) is None
