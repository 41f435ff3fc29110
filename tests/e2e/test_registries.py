"""Rounds whose program is in a registry that asks for a login: Debian's, with htpasswd and with token authentication.

What can go wrong with a registry ends a round within seconds, with one reason in the proxy's log, in the proplet's
result and in the round; credentials go to the registry they are for, and into no log.
"""

import contextlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.data import program_path
from propeller.digests import digest_of
from propeller.oci import manifest
from propeller.oci.manifest import Descriptor
from support import go_program
from support.http_servers import Answer, RecordingServer, open_silent_server
from support.net import free_port
from support.registries import basic, blob_file, debian
from support.stack import OWN_PROGRAMS, Up, propeller, running_stack
from support.token_server import DENIED, UNGRANTED, TokenServer

pytestmark = pytest.mark.timeout(180)

LOGIN = ("someone", f"secret-{uuid.uuid4().hex}")
WRONG = ("someone", f"wrong-{uuid.uuid4().hex}")
FRONT = ("someone", f"front-{uuid.uuid4().hex}")
CHUNK = 40_000
PROGRAM = program_path("logreg")


@dataclass
class Rig:
    """A registry, what gives its tokens, another registry, and a stack whose proxy knows the logins of both."""

    host: str
    folder: Path
    tokens: TokenServer | None
    front: "Front"
    nowhere: str
    silent: str
    other: RecordingServer
    up: Up

    def push(self, file: Path, name: str) -> str:
        """Push a program with the login on the command line; its reference."""
        reference = f"{self.host}/{name}"
        pushed = propeller("push", str(file), reference, "-u", LOGIN[0], "--password-stdin", stdin=LOGIN[1])
        assert pushed.returncode == 0, pushed.stderr
        return reference

    def authorization(self, repository: str) -> str:
        """The header with which anything may be put into a repository."""
        return (
            f"Bearer {self.tokens.token(f'repository:{repository}:pull,push')}"
            if self.tokens
            else basic(LOGIN)
        )

    def put(self, repository: str, layers: list[tuple[str, bytes]], *, index: bool = False) -> str:
        """Put an artifact that ``propeller push`` would not make; its reference."""
        with httpx.Client(
            base_url=f"http://{self.host}/v2/{repository}/",
            headers={"Authorization": self.authorization(repository)},
            trust_env=False,
        ) as http:
            for _, data in [("", manifest.EMPTY), *layers]:
                place = http.post("blobs/uploads/").raise_for_status().headers["location"]
                whole = httpx.URL(place).copy_add_param("digest", digest_of(data))
                http.put(whole, content=data).raise_for_status()
            document: dict[str, Any] = {
                "schemaVersion": 2,
                "mediaType": manifest.IMAGE_MANIFEST,
                "config": Descriptor.of(manifest.EMPTY_CONFIG, manifest.EMPTY).to_json(),
                "layers": [Descriptor.of(kind, data).to_json() for kind, data in layers],
            }
            if index:
                document = {"schemaVersion": 2, "mediaType": manifest.IMAGE_INDEX, "manifests": []}
            http.put(
                "manifests/latest",
                content=json.dumps(document),
                headers={"Content-Type": document["mediaType"]},
            ).raise_for_status()
        return f"{self.host}/{repository}:latest"

    def round(self, image: str) -> dict[str, Any]:
        """Run a round of the three proplets with an image, to its end."""
        name = f"r-{uuid.uuid4().hex[:8]}"
        started = httpx.post(
            f"{self.up.url('manager')}/fl/experiments",
            json={
                "experiment_id": name,
                "round_id": name,
                "model_ref": "fl/models/global_model_v0",
                "participants": self.up.ids(),
                "hyperparams": {"epochs": 1, "lr": 0.1},
                "k_of_n": 3,
                "timeout_s": 60,
                "task_wasm_image": image,
            },
        )
        assert started.status_code == 200, started.text
        coordinator = self.up.url("coordinator")
        httpx.get(
            f"{coordinator}/rounds/{name}/complete", params={"wait_s": 30}, timeout=40
        ).raise_for_status()
        status: dict[str, Any] = httpx.get(f"{coordinator}/rounds/{name}").raise_for_status().json()
        return status

    def log(self, service: str) -> list[dict[str, Any]]:
        """The lines of a service's log."""
        return [
            json.loads(line) for line in (self.up.folder / "logs" / f"{service}.log").read_text().splitlines()
        ]


class Front:
    """A registry with one program that sends on to a store for its bytes, as GHCR does; both record what they see."""

    def __init__(self, program: bytes) -> None:
        self._layer = Descriptor.of(manifest.WASM, program)
        self.store = RecordingServer(lambda _path, _authorization: (200, {}, program))
        self.registry = RecordingServer(self._answer)

    def _answer(self, path: str, authorization: str | None) -> Answer:
        if authorization != basic(FRONT):
            return 401, {"WWW-Authenticate": 'Basic realm="front"'}, b""
        if "/blobs/" in path:
            return 307, {"Location": f"http://{self.store.host}{path}"}, b""
        document = manifest.program_manifest(self._layer)
        return 200, {"Docker-Content-Digest": digest_of(document)}, document


HTPASSWD_AND_TOKENS = pytest.mark.parametrize("rig", ["htpasswd", "tokens"], indirect=True)
TOKENS = pytest.mark.parametrize("rig", ["tokens"], indirect=True)


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A stack beside a registry with one kind of login."""
    folder, docker = tmp_path_factory.mktemp("registry"), tmp_path_factory.mktemp("docker")
    with contextlib.ExitStack() as stack:
        tokens = None
        if request.param == "tokens":
            tokens = stack.enter_context(TokenServer(LOGIN).running())
            host = stack.enter_context(debian(folder, auth=tokens.configuration(folder)))
        else:
            host = stack.enter_context(debian(folder, LOGIN))
        front = Front(other_program("front"))
        stack.enter_context(front.store.running())
        stack.enter_context(front.registry.running())
        other = RecordingServer(lambda path, _authorization: ask_for_login(other.host, path))
        stack.enter_context(other.running())
        silent, nowhere = stack.enter_context(open_silent_server()), f"127.0.0.1:{free_port()}"
        allowed = [by_name(host), front.registry.host, front.store.host, other.host, silent, nowhere]
        if tokens is not None:
            allowed.append(tokens.host)
        # The registry answers to both names of loopback; under the second one the login is wrong.
        logins = {by_name(host): docker_login(WRONG), front.registry.host: docker_login(FRONT)}
        (docker / "config.json").write_text(json.dumps({"auths": logins}))
        up = stack.enter_context(
            running_stack(
                tmp_path_factory.mktemp("up") / "state",
                *("--log-level", "debug"),  # nothing is more talkative
                env={
                    **OWN_PROGRAMS,
                    "PROXY_AUTHENTICATE": "true",
                    "PROXY_REGISTRY_URL": f"http://{host}/home",
                    "PROXY_REGISTRY_USERNAME": LOGIN[0],
                    "PROXY_REGISTRY_PASSWORD": LOGIN[1],
                    "PROXY_ALLOWED_REGISTRIES": ",".join(allowed),
                    "PROXY_REGISTRY_TIMEOUT": "1s",
                    "PROXY_CHUNK_SIZE": str(CHUNK),
                    "DOCKER_CONFIG": str(docker),
                },
            )
        )
        yield Rig(host, folder, tokens, front, nowhere, silent, other, up)


def ask_for_login(host: str, path: str) -> Answer:
    """What a registry answers that is also its own token server, and gives nobody a token."""
    challenge = f'Bearer realm="http://{host}/token",service="r", Basic realm="r"'
    return (403, {}, b"") if path.startswith("/token") else (401, {"WWW-Authenticate": challenge}, b"")


def docker_login(login: tuple[str, str]) -> dict[str, str]:
    """What ``docker login`` keeps for a registry."""
    return {"auth": basic(login).removeprefix("Basic ")}


def by_name(host: str) -> str:
    """A host of loopback by its other name, which is another registry as far as logins go."""
    return host.replace("127.0.0.1", "localhost")


def other_program(name: str) -> bytes:
    """The program with a custom section, which makes it another one."""
    section = bytes([len(name)]) + name.encode()
    return PROGRAM.read_bytes() + b"\0" + bytes([len(section)]) + section


def check_round(rig: Rig, image: str, program: Path) -> None:
    """A round with the image completes; each of its program's chunks was published once for all three proplets."""
    status = rig.round(image)
    assert (status["state"], status["failures"]) == ("completed", [])
    assert {one["proplet_id"] for one in status["received"]} == set(rig.up.ids())
    digest = digest_of(program.read_bytes())
    chunks = -(-program.stat().st_size // CHUNK)
    sent = [
        (line["total_chunks"], line["sent_chunks"])
        for line in rig.log("proxy")
        if line["msg"] == "successfully sent all chunks" and line["digest"] == digest
    ]
    assert sent == [(chunks, chunks)]


@HTPASSWD_AND_TOKENS
def test_a_program_pushed_with_a_password_from_standard_input(rig: Rig) -> None:
    check_round(rig, rig.push(PROGRAM, "team/fl-client-wasm:v1"), PROGRAM)


@TOKENS
def test_the_program_in_go(rig: Rig) -> None:
    """What the guide builds and pushes."""
    program = go_program.build()
    check_round(rig, rig.push(program, "team/fl-client-wasm:go"), program)


@HTPASSWD_AND_TOKENS
def test_a_program_pushed_with_dockers_login(rig: Rig, tmp_path: Path) -> None:
    """Named by its repository alone: the rest is what PROXY_REGISTRY_URL says."""
    program = tmp_path / "by-docker.wasm"
    program.write_bytes(other_program("by docker"))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {rig.host: docker_login(LOGIN)}}))
    pushed = propeller(
        "push", str(program), f"{rig.host}/home/by-docker:v1", env={"DOCKER_CONFIG": str(tmp_path)}
    )
    assert pushed.returncode == 0, pushed.stderr
    check_round(rig, "by-docker:v1", program)


def check_failure(rig: Rig, image: str, cause: str, remedy: str) -> None:
    """A round with the image fails at once, and says why in the three places that the guide looks at."""
    begun = time.monotonic()
    status = rig.round(image)
    assert time.monotonic() - begun < 10
    assert status["state"] == "failed"
    failures = {failure["proplet_id"]: failure["reason"] for failure in status["failures"]}
    assert set(failures) == set(rig.up.ids())
    tasks = (
        httpx.get(f"{rig.up.url('manager')}/tasks", params={"limit": 1000}).raise_for_status().json()["tasks"]
    )
    results = [task["error"] for task in tasks if task["env"]["ROUND_ID"] == status["round_id"]]
    logged = [
        line["reason"]
        for line in rig.log("proxy")
        if line["msg"] == "failed to fetch container" and line["app_name"] == image
    ]
    for reasons in (failures.values(), results, logged):
        assert reasons
        for reason in reasons:
            assert cause in reason
            assert remedy in reason
            assert len(reason.splitlines()) == 1


@TOKENS
def test_an_unknown_repository_or_tag(rig: Rig) -> None:
    check_failure(rig, f"{rig.host}/team/nothing:v1", "404 Not Found", "exactly the name and tag you pushed")
    rig.push(PROGRAM, "team/tagged:v1")
    check_failure(rig, f"{rig.host}/team/tagged:v2", "404 Not Found", "exactly the name and tag you pushed")


@TOKENS
def test_an_upper_case_repository(rig: Rig) -> None:
    check_failure(rig, f"{rig.host}/Team/fl-client-wasm:v1", "upper-case", "GHCR names are case-sensitive")


@HTPASSWD_AND_TOKENS
def test_a_wrong_password(rig: Rig) -> None:
    check_failure(
        rig, f"{by_name(rig.host)}/team/fl-client-wasm:v1", "401 Unauthorized", "PROXY_REGISTRY_PASSWORD"
    )


@TOKENS
def test_a_login_without_permission(rig: Rig) -> None:
    check_failure(rig, f"{rig.host}/{DENIED}x:v1", "403 Forbidden (permission denied)", "read:packages")
    image = f"{rig.host}/{UNGRANTED}x:v1"
    check_failure(rig, image, "no permission for this repository", "must match exactly what was pushed")


@TOKENS
def test_a_tampered_program(rig: Rig) -> None:
    program = other_program("tampered")
    image = rig.put("team/tampered", [(manifest.WASM, program)])
    blob = blob_file(rig.folder, digest_of(program))
    blob.write_bytes(program[:-1] + b"D")
    check_failure(rig, image, "another digest or size", "nothing of it was used")


@TOKENS
def test_artifacts_that_are_not_one_program(rig: Rig) -> None:
    text = ("text/plain", b"no program")
    check_failure(
        rig, rig.put("team/text", [text]), "no Wasm layer (its layers: text/plain)", "propeller push"
    )
    check_failure(
        rig, rig.put("team/false", [(manifest.WASM, b"no program")]), "not a Wasm module", "propeller push"
    )
    check_failure(rig, rig.put("team/index", [], index=True), "is an image index", "propeller push")


@TOKENS
def test_a_registry_that_is_not_there_or_hangs(rig: Rig) -> None:
    for host in (rig.nowhere, rig.silent):
        check_failure(rig, f"{host}/team/x:v1", f"{host} cannot be reached now", "the proxy's log says why")
    reasons = " ".join(
        line["reason"] for line in rig.log("proxy") if line["msg"] == "registry cannot be reached"
    )
    assert f"{rig.silent} did not answer within 1 s" in reasons


@TOKENS
def test_a_registry_that_is_not_allowed(rig: Rig) -> None:
    image = f"127.0.0.1:{free_port()}/team/x:v1"
    check_failure(rig, image, "is not a registry that the proxy fetches from", "PROXY_ALLOWED_REGISTRIES")


@TOKENS
def test_another_registry_gets_no_credentials(rig: Rig) -> None:
    """Whatever it asks for, also as the token server of itself."""

    other = rig.other
    check_failure(rig, f"{other.host}/team/x:v1", "403 Forbidden", f"docker login {other.host}")
    assert {path.partition("?")[0] for path, _ in other.seen} == {"/token", "/v2/team/x/manifests/v1"}
    assert {authorization for _, authorization in other.seen} == {None}


@TOKENS
def test_credentials_do_not_follow_a_redirect(rig: Rig) -> None:
    status = rig.round(f"{rig.front.registry.host}/team/x:v1")
    assert status["state"] == "completed"
    assert rig.front.store.seen
    assert {authorization for _, authorization in rig.front.store.seen} == {None}
    assert {authorization for _, authorization in rig.front.registry.seen} == {None, basic(FRONT)}


@HTPASSWD_AND_TOKENS
def test_what_push_says(rig: Rig) -> None:
    """What ``oras push`` says, and the size; the login is where the guide's second option has it."""
    login = {"ORAS_USER": LOGIN[0], "ORAS_PASSWORD": LOGIN[1]}
    pushed = propeller("push", str(PROGRAM), f"{rig.host}/team/said:v1", env=login)
    assert pushed.returncode == 0, pushed.stderr
    headers = {"Authorization": rig.authorization("team/said"), "Accept": manifest.IMAGE_MANIFEST}
    kept = httpx.get(f"http://{rig.host}/v2/team/said/manifests/v1", headers=headers).raise_for_status()
    assert pushed.stdout.splitlines() == [
        f"Pushed [registry] {rig.host}/team/said:v1",
        "ArtifactType: application/vnd.unknown.artifact.v1",
        f"Digest: {digest_of(kept.content)}",
        f"Size: {PROGRAM.stat().st_size} bytes",
        "May: files",
    ]


@HTPASSWD_AND_TOKENS
def test_push_with_a_wrong_password_or_none_says_how_to_log_in(rig: Rig) -> None:
    for options, stdin in (((), ""), (("-u", WRONG[0], "--password-stdin"), f"{WRONG[1]}\n")):
        pushed = propeller("push", str(PROGRAM), f"{rig.host}/team/no:v1", *options, stdin=stdin)
        check_refusal(pushed, "401 Unauthorized", f"docker login {rig.host}")


@TOKENS
def test_push_without_permission_says_what_is_needed(rig: Rig) -> None:
    for repository, cause in ((DENIED, "403 Forbidden"), (UNGRANTED, "no permission for this repository")):
        pushed = propeller(
            "push",
            str(PROGRAM),
            f"{rig.host}/{repository}x:v1",
            "-u",
            LOGIN[0],
            "--password-stdin",
            stdin=LOGIN[1],
        )
        check_refusal(pushed, cause, "write:packages")


def check_refusal(pushed: "subprocess.CompletedProcess[str]", cause: str, remedy: str) -> None:
    assert pushed.returncode == 1
    assert pushed.stdout == ""
    assert pushed.stderr.startswith("error: ")
    assert cause in pushed.stderr
    assert remedy in pushed.stderr
    assert len(pushed.stderr.splitlines()) == 1
    for _, password in (LOGIN, WRONG):
        assert password not in pushed.stderr


@HTPASSWD_AND_TOKENS
def test_no_secret_is_shown(rig: Rig) -> None:
    """Neither passwords nor tokens are in what was logged and printed so far, by good and bad rounds."""
    assert rig.round(rig.push(PROGRAM, "team/quiet:v1"))["state"] == "completed"
    assert rig.round(f"{by_name(rig.host)}/team/quiet:v1")["state"] == "failed"
    shown = rig.up.output + "".join(file.read_text() for file in (rig.up.folder / "logs").iterdir())
    assert "failed to fetch container" in shown
    secrets = [text for login in (LOGIN, WRONG, FRONT) for text in (login[1], docker_login(login)["auth"])]
    for secret in [*secrets, *(rig.tokens.issued if rig.tokens else [])]:
        assert secret not in shown
