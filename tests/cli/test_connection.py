"""Which services, and which registry, the options of a command name."""

from pathlib import Path

import pytest

from propeller.cli.connection import Target, read_addresses
from propeller.errors import StartError
from propeller.oci.reference import DefaultRegistry
from propeller.sdk import Propeller
from propeller.sdk.kept_login import KeptLogin

NAMED = tuple(
    f"{name}=http://fleet.example/{name}"
    for name in ("manager", "coordinator", "model_registry", "data_store", "identity")
)
REGISTRY = "https://fleet.example:26429"
NO_REGISTRY = r"no address of .* registry is known: give it .*--url oci_registry=URL"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PROPELLER_URL", "PROXY_REGISTRY_URL", "PROPELLER_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "registry"),
    [
        ((*NAMED, f"oci_registry={REGISTRY}"), REGISTRY),
        ((*NAMED, f"oci-registry={REGISTRY}/"), REGISTRY),
        (("http://fleet.example",), "http://fleet.example:5000"),
        (("http://fleet.example", f"oci_registry={REGISTRY}"), REGISTRY),
        (("http://fleet.example", "manager=http://other.example"), "http://fleet.example:5000"),
    ],
)
def test_programs_go_to_the_registry_of_the_stack_that_is_named(
    given: tuple[str, ...], registry: str
) -> None:
    target = Target(urls=given)
    with target.connect() as fl:
        assert fl.registry == registry
    assert target.registry() == (DefaultRegistry.parse(registry), None)


def test_services_alone_have_no_registry_and_nothing_is_pushed_to_this_machine(tmp_path: Path) -> None:
    (tmp_path / "p.wasm").write_bytes(b"\0asm")
    target = Target(urls=NAMED)
    with target.connect() as fl:
        assert fl.registry == ""
        with pytest.raises(StartError, match=NO_REGISTRY):
            fl.push_program("p.wasm")
    with pytest.raises(StartError, match=NO_REGISTRY):
        target.registry()
    with Propeller(manager="http://fleet.example:1", oci_registry=REGISTRY) as fl:
        assert fl.registry == REGISTRY
    with Propeller() as fl:
        assert fl.registry == "http://localhost:5000"


def test_a_kept_login_has_it(tmp_path: Path) -> None:
    urls = read_addresses(NAMED, with_identity=True)
    tokens = {"access_token": "a", "refresh_token": "r"}
    KeptLogin.keep(urls, REGISTRY, "ann", tokens, None)
    for target in (Target(), Target(urls=NAMED), Target(urls=(*NAMED, f"oci_registry={REGISTRY}"))):
        with target.connect() as fl:
            assert fl.registry == REGISTRY
    assert Target().registry() == (DefaultRegistry.parse(REGISTRY), None)
    KeptLogin.keep(urls, "", "ann", tokens, None)
    with Target().connect() as fl, pytest.raises(StartError, match=NO_REGISTRY):
        fl.push_program(tmp_path / "p.wasm")
    with pytest.raises(StartError, match=NO_REGISTRY):
        Target().registry()
