"""Logins that docker left, and answers to parse_challenges."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from propeller.oci.credentials import Login, Token, docker_logins, logins_for
from propeller.oci.reference import Registry


def config(folder: Path, document: Any) -> Path:
    (folder / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return folder


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_logins_are_read_by_host(tmp_path: Path) -> None:
    document = {
        "auths": {
            "ghcr.io": auth("user:p:ss"),
            "https://index.docker.io/v1/": {"username": "hub", "password": "secret"},
            "token.example": {"registrytoken": "abc"},
        }
    }
    assert docker_logins(config(tmp_path, document)) == {
        "ghcr.io": Login("user", "p:ss"),
        "docker.io": Login("hub", "secret"),
        "token.example": Token("abc"),
    }


def test_the_folder_is_docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(config(tmp_path, {"auths": {"a.example": auth("u:p")}})))
    assert docker_logins() == {"a.example": Login("u", "p")}


@pytest.mark.parametrize(
    "document", ["", "[]", "{", '{"auths": 3}', '{"auths": {"a": 3, "b": {"auth": "%"}}}']
)
def test_a_broken_file_gives_no_logins(tmp_path: Path, document: str) -> None:
    assert docker_logins(config(tmp_path, document)) == {}


def test_no_file_gives_no_logins(tmp_path: Path) -> None:
    assert docker_logins(tmp_path) == {}


def test_helpers_are_named_and_not_run(tmp_path: Path) -> None:
    document = {"auths": {"ghcr.io": {}}, "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}}
    with structlog.testing.capture_logs() as logs:
        assert docker_logins(config(tmp_path, document)) == {}
    assert [line["hosts"] for line in logs] == [["gcr.io", "ghcr.io"]]
    assert "not used" in logs[0]["event"]


def test_secrets_do_not_show() -> None:
    assert "hidden" not in repr([Login("user", "hidden"), Token("hidden")])


def test_a_login_of_docker_is_for_plain_http_only_where_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "DOCKER_CONFIG", str(config(tmp_path, {"auths": {"a:5000": auth("u:p"), "b": auth("v:q")}}))
    )
    login = Login("u", "p")
    assert logins_for(Registry("a:5000", plain_http=True)) == {
        "a:5000": login, "http://a:5000": login, "b": Login("v", "q")
    }  # fmt: skip
    assert logins_for(Registry("b"), login)["b"] == login
    assert logins_for(Registry("c")) == docker_logins()
