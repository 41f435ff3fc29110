"""Settings from the environment: both dialects of durations, every fault named at once, no secret in the text."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from propeller.process.settings import (
    HttpSettings,
    Seconds,
    ServiceSettings,
    SettingsError,
    parse_duration,
)

SECONDS: TypeAdapter[float] = TypeAdapter(Seconds)


class Example(ServiceSettings):
    domain_id: str = Field(validation_alias=AliasChoices("X_DOMAIN_ID", "X_TENANT_ID"))
    key: int = Field(alias="X_CLIENT_KEY")
    wait: Seconds = Field(30.0, alias="X_WAIT")
    names: list[str] = Field([], alias="X_NAMES")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("X_DOMAIN_ID", "X_TENANT_ID", "X_CLIENT_KEY", "X_WAIT", "X_NAMES", "PROPELLER_AUTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PROPELLER_IDENTITY_URL", raising=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), (" 30 ", 30), ("0", 0), ("1.5", 1.5), ("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600),
     ("1.5h", 5400), (".5s", 0.5), ("100us", 1e-4), ("100µs", 1e-4), ("1ns", 1e-9), (30, 30), (0.25, 0.25)],
)  # fmt: skip
def test_durations(text: Any, seconds: float) -> None:
    assert SECONDS.validate_python(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "30x", "30 s", "-30s", "-1", "1d", "nan", "inf", "1e3", "1_0", "30s!", "٣", "9" * 400, -1, math.inf],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError):
        SECONDS.validate_python(text)


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert parse_duration(text) >= 0
    except ValueError as error:
        assert "write seconds" in str(error)  # noqa: PT017


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        Example.load()
    assert "X_DOMAIN_ID: not set" in str(error.value)
    assert "X_CLIENT_KEY: not set" in str(error.value)


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_DOMAIN_ID", "")
    monkeypatch.setenv("X_TENANT_ID", "d")
    monkeypatch.setenv("X_CLIENT_KEY", "7")
    monkeypatch.setenv("X_WAIT", "")
    loaded = Example.load()
    assert (loaded.domain_id, loaded.key, loaded.wait) == ("d", 7, 30.0)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_WAIT", "1m")
    assert Example.load(domain_id="d", key=1).wait == 60
    assert Example.load(domain_id="d", key=1, wait=5).wait == 5


def test_a_wrong_value_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_CLIENT_KEY", "hunter2")
    monkeypatch.setenv("X_WAIT", "soon")
    with pytest.raises(SettingsError) as error:
        Example.load(domain_id="d")
    assert "X_CLIENT_KEY: Input should be a valid integer" in str(error.value)
    assert "X_WAIT: 'soon' is not a duration; write seconds (30) or a Go duration" in str(error.value)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_list_that_is_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_NAMES", "hunter2,b")
    with pytest.raises(SettingsError, match="names") as error:
        Example.load(domain_id="d", key=1)
    assert "hunter2" not in str(error.value)


def test_access_is_on_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HttpSettings.load().auth == "on"
    monkeypatch.setenv("PROPELLER_AUTH", "maybe")
    with pytest.raises(SettingsError, match="PROPELLER_AUTH: Input should be 'on' or 'off'"):
        HttpSettings.load()
    monkeypatch.setenv("PROPELLER_AUTH", "")
    monkeypatch.setenv("PROPELLER_PEER_ROLE", "admin")
    with pytest.raises(
        SettingsError, match="PROPELLER_PEER_ROLE: Input should be 'manager', 'coordinator' or"
    ):
        HttpSettings.load()


def test_a_fields_own_name_in_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(ServiceSettings):
        host: str = Field("127.0.0.1", alias="NAMED_HOST")
        key: str = Field("", validation_alias=AliasChoices("NAMED_KEY", "NAMED_API_KEY"))

    for variable in ("host", "HOST", "key", "KEY"):
        monkeypatch.setenv(variable, "stray")
    assert (Named.load().host, Named.load().key) == ("127.0.0.1", "")
    monkeypatch.setenv("NAMED_API_KEY", "k")
    assert Named.load(host="::1").model_dump() == {"host": "::1", "key": "k"}
    assert Named.load(key="given").key == "given"
