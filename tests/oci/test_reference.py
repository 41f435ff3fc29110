"""References: what is read, what is written, and what is refused with which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.oci.errors import InvalidReferenceError
from propeller.oci.reference import DOCKER_HUB, DefaultRegistry, Reference, Registry

DIGEST = "sha256:" + "0a" * 32
HUB = DOCKER_HUB.registry
LOCAL = Registry("local-registry:5000", plain_http=True)

part = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,2})[a-z0-9]{1,8}){0,2}", fullmatch=True)
repository = st.lists(part, min_size=1, max_size=4).map("/".join)
host = st.from_regex(
    r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){1,2}(:[1-9][0-9]{0,3})?|localhost(:5000)?|\[::1\]:80", fullmatch=True
)
registry = st.builds(Registry, host, st.booleans()).filter(lambda one: one.host != "index.docker.io")
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
digest = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(registry, repository, st.none() | tag, st.none() | digest)
def test_what_is_written_is_read_back(
    registry: Registry, repository: str, tag: str | None, digest: str | None
) -> None:
    if tag is None and digest is None:
        tag = "latest"
    reference = Reference(registry, repository, tag, digest)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(str(reference), DefaultRegistry(LOCAL)) == reference


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_typed_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReferenceError:
        return
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ghcr.io/u/fl-client-wasm", Reference(Registry("ghcr.io"), "u/fl-client-wasm", "latest")),
        ("ghcr.io/u/x:v1", Reference(Registry("ghcr.io"), "u/x", "v1")),
        ("GHCR.io/u/x:V1", Reference(Registry("ghcr.io"), "u/x", "V1")),
        (f"ghcr.io/u/x@{DIGEST}", Reference(Registry("ghcr.io"), "u/x", None, DIGEST)),
        (f"ghcr.io/u/x:v1@{DIGEST}", Reference(Registry("ghcr.io"), "u/x", "v1", DIGEST)),
        ("localhost:5000/x", Reference(Registry("localhost:5000", plain_http=True), "x", "latest")),
        ("127.0.0.1:5000/x", Reference(Registry("127.0.0.1:5000", plain_http=True), "x", "latest")),
        ("[::1]:5000/x", Reference(Registry("[::1]:5000", plain_http=True), "x", "latest")),
        ("https://localhost:5000/x", Reference(Registry("localhost:5000"), "x", "latest")),
        ("http://host/x:1", Reference(Registry("host", plain_http=True), "x", "1")),
        ("local-registry:5000/x", Reference(Registry("local-registry:5000"), "x", "latest")),
        ("alpine", Reference(HUB, "library/alpine", "latest")),
        ("user/x:1", Reference(HUB, "user/x", "1")),
        ("docker.io/alpine", Reference(HUB, "library/alpine", "latest")),
        ("index.docker.io/user/x", Reference(HUB, "user/x", "latest")),
    ],
)
def test_forms(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "fl-client-wasm:latest",
        "local-registry:5000/fl-client-wasm",
        "http://local-registry:5000/fl-client-wasm",
    ],
)
def test_the_default_registry_and_its_plain_http(text: str) -> None:
    assert Reference.parse(text, DefaultRegistry(LOCAL)) == Reference(LOCAL, "fl-client-wasm", "latest")


def test_a_default_registry_without_dot_or_port_is_known_by_its_name() -> None:
    registry = Registry("registry", plain_http=True)
    assert Reference.parse("registry/x", DefaultRegistry(registry)) == Reference(registry, "x", "latest")
    assert Reference.parse("other/x", DefaultRegistry(registry)) == Reference(registry, "other/x", "latest")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ghcr.io", DefaultRegistry(Registry("ghcr.io"))),
        ("https://ghcr.io/", DefaultRegistry(Registry("ghcr.io"))),
        ("ghcr.io/user", DefaultRegistry(Registry("ghcr.io"), "user")),
        ("https://ghcr.io/org/team/", DefaultRegistry(Registry("ghcr.io"), "org/team")),
        ("http://local-registry:5000/user", DefaultRegistry(LOCAL, "user")),
        ("https://index.docker.io/v1/", DefaultRegistry(HUB)),
        ("http://local-registry:5000/v2/", DefaultRegistry(LOCAL)),
    ],
)
def test_default_registries(text: str, expected: DefaultRegistry) -> None:
    assert DefaultRegistry.parse(text) == expected


def test_a_namespace_is_for_references_that_name_no_registry() -> None:
    home = DefaultRegistry(Registry("ghcr.io"), "user")
    for text, repository in (("x:v1", "user/x"), ("a/x:v1", "user/a/x"), ("ghcr.io/other/x:v1", "other/x")):
        assert Reference.parse(text, home) == Reference(Registry("ghcr.io"), repository, "v1")
    assert Reference.parse("x:v1", DefaultRegistry(HUB, "user")) == Reference(HUB, "user/x", "v1")


@pytest.mark.parametrize("text", ["ghcr.io/User", "ghcr.io/a//b", "/user", "ghcr.io/user:v1", "ftp://x/y"])
def test_what_is_not_a_home_says_how_one_is_written(text: str) -> None:
    with pytest.raises(InvalidReferenceError, match="write") as caught:
        DefaultRegistry.parse(text)
    assert "ghcr.io" in caught.value.remedy


def test_upper_case_repositories_get_the_guides_remedy() -> None:
    with pytest.raises(InvalidReferenceError, match="upper-case") as caught:
        Reference.parse("ghcr.io/YourUsername/fl-client-wasm:latest")
    assert caught.value.remedy == "GHCR names are case-sensitive/lower-case: use exactly the name you pushed"


@pytest.mark.parametrize(
    "text",
    [
        "", "/", ":", "@", "ghcr.io/", "ghcr.io/../x", "ghcr.io/a//b", "ghcr.io/a/", "x:", "x:-a", "x@", "x@sha256:12",
        f"x@sha512:{'0' * 128}", "ftp://host/x", "http://host", "host:99999/x", "a b", "a/b\n/c", "x:" + "a" * 129,
        "a" * 256, "ghcr.io/u/x:v1?y", "http://user:pass@host/x", "-a/b", "a:b:c",
    ],
)  # fmt: skip
def test_what_is_not_a_reference_says_how_one_is_written(text: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        Reference.parse(text)
    assert "write" in caught.value.remedy


def test_a_password_in_a_reference_is_not_shown() -> None:
    for parse in (Reference.parse, Registry.parse, DefaultRegistry.parse):
        for text in ("http://user:hunter2@host/x", "user:hunter2@host/x"):
            with pytest.raises(InvalidReferenceError) as caught:
                parse(text)
            assert "hunter2" not in str(caught.value)


def test_docker_hub_has_its_api_elsewhere() -> None:
    assert HUB.base_url == "https://registry-1.docker.io"
    assert LOCAL.base_url == "http://local-registry:5000"
