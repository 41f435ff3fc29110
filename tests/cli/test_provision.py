"""``propeller provision`` against a real identity service: first runs, later runs, and everything that can be wrong."""

import asyncio
import functools
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from propeller.cli.app import app
from propeller.cli.provision import run_clear, run_provision
from propeller.errors import StartError
from propeller.stack.env_file import (
    CHANNEL_VARIABLES,
    DOMAIN_VARIABLES,
    PROVISIONED_CLIENTS,
    PROVISIONED_VARIABLES,
    EnvFile,
    id_variable,
    key_variable,
)
from propeller.stack.provisioning import IdentityApi
from support.identity import PASSWORD, Site, hash_cheaply, served
from support.net import eventually, free_port
from support.stack import propeller

ROOT = Path(__file__).parents[2]


@dataclass
class Place:
    """An identity service, and an .env file to provision."""

    site: Site
    path: Path
    api: IdentityApi
    capture: pytest.CaptureFixture[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.site.identity.users_port}"

    @property
    def values(self) -> dict[str, str]:
        return EnvFile.read(self.path).values

    def put(self, **values: str) -> None:
        file = EnvFile.read(self.path)
        file.write(file.updated(values))

    async def run(self, *, rotate: bool = False, wait_s: float = 0) -> str:
        """Provision; gives what is printed."""
        await asyncio.to_thread(run_provision, self.path, self.url, None, rotate=rotate, wait_s=wait_s)
        return self.capture.readouterr().out

    async def refusal(self, *, rotate: bool = False) -> str:
        """Provision in vain; gives the error. The file must stay as it is."""
        before = self.path.read_bytes() if self.path.exists() else None
        with pytest.raises(StartError) as caught:
            await self.run(rotate=rotate)
        assert (self.path.read_bytes() if self.path.exists() else None) == before
        keys = {value for name, value in self.values.items() if name.endswith("_KEY")} - {""}
        assert not [key for key in keys if key in str(caught.value)]
        return str(caught.value)

    async def working(self) -> list[str]:
        """The clients whose ids and keys in the file identity accepts."""
        values = self.values
        return [
            name
            for name in PROVISIONED_CLIENTS
            if await self.api.accepts(values[id_variable(name)], values[key_variable(name)])
        ]

    async def call(self, method: str, path: str) -> None:
        """Do something else as the admin."""
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.request(method, f"{self.url}{path}", headers=self.api.headers)
            assert answer.is_success, answer.text

    def connections(self) -> set[tuple[str, str]]:
        """Client and channel of every connection there is."""
        with sqlite3.connect(self.site.identity.database) as database:
            found: list[tuple[str, str]] = database.execute(
                "SELECT client_id, channel_id FROM connections"
            ).fetchall()
        database.close()
        return set(found)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    hash_cheaply(monkeypatch)
    for name in ("IDENTITY_ADMIN_USERNAME", "IDENTITY_ADMIN_PASSWORD", "PORT_IDENTITY_USERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Place]:
    site = Site.at(tmp_path)
    async with served(site.identity) as http:
        api = IdentityApi(*[str(http.base_url)] * 4)
        await api.login("admin", PASSWORD)
        yield Place(site, tmp_path / "deploy.env", api, capsys)
        await api.aclose()


async def test_a_first_run_makes_the_file_and_everything_in_it(place: Place) -> None:
    shown = await place.run()
    values = place.values
    assert list(values) == list(PROVISIONED_VARIABLES)
    assert await place.working() == list(PROVISIONED_CLIENTS)
    domain = await place.api.domain("fl-demo")
    assert domain is not None
    assert {values[name] for name in DOMAIN_VARIABLES} == {domain["id"]}
    channel = await place.api.channel(domain["id"], "fl")
    assert channel is not None
    assert {values[name] for name in CHANNEL_VARIABLES} == {channel["id"]}
    assert place.connections() == {(values[id_variable(name)], channel["id"]) for name in PROVISIONED_CLIENTS}
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    for name in PROVISIONED_CLIENTS:
        assert f"{name:<15} {values[id_variable(name)]}  new\n" in shown
        assert values[key_variable(name)] not in shown
    assert (
        "--force-recreate manager coordinator-http local-data-store proxy proplet proplet-2 proplet-3"
        in shown
    )


async def test_a_second_run_changes_nothing(place: Place) -> None:
    place.path.write_text("# mine\nA=1  # kept\n")
    await place.run()
    backup = EnvFile.read(place.path).backup
    before = [
        (each.read_bytes(), each.stat().st_mtime_ns, each.stat().st_ino) for each in (place.path, backup)
    ]
    assert before[1][0] == b"# mine\nA=1  # kept\n"
    shown = await place.run()
    assert "nothing was changed" in shown
    assert shown.count("kept\n") == 7
    assert [
        (each.read_bytes(), each.stat().st_mtime_ns, each.stat().st_ino) for each in (place.path, backup)
    ] == before


async def test_a_proplet_of_absmach_propeller_is_marked_and_stays_so(place: Place) -> None:
    await place.run()
    run = functools.partial(
        run_provision, place.path, place.url, None, rotate=False, wait_s=0, compat=["proplet-2"]
    )
    await asyncio.to_thread(run)
    assert re.search(r"proplet-2 .*  kept, compat\n", place.capture.readouterr().out)
    await place.run()
    domain = place.values["MANAGER_DOMAIN_ID"]
    marked = {name: (await place.api.client(domain, name) or {})["compat"] for name in PROVISIONED_CLIENTS}
    assert [name for name, compat in marked.items() if compat] == ["proplet-2"]
    wrong = CliRunner().invoke(app, ["provision", "--compat", "manager"])
    assert wrong.exit_code == 2


async def test_what_was_half_done_is_completed(place: Place) -> None:
    domain = await place.api.make_domain("fl-demo")
    made = {name: await place.api.make_client(domain["id"], name) for name in ("manager", "proplet-2")}
    for name, pair in made.items():
        place.put(**{id_variable(name): pair["id"], key_variable(name): pair["key"]})
    shown = await place.run()
    assert place.values[key_variable("proplet-2")] == made["proplet-2"]["key"]
    assert shown.count("  kept\n") == 2
    assert await place.working() == list(PROVISIONED_CLIENTS)
    assert len(place.connections()) == 7


async def test_every_key_that_is_lost_wrong_or_anothers_is_named_and_rotated_when_asked(place: Place) -> None:
    await place.run()
    first = place.values
    place.put(
        PROPLET_CLIENT_KEY="",
        PROPLET_2_CLIENT_KEY="0" * 64,
        PROPLET_3_CLIENT_ID="<YOUR_CLIENT_ID>",
        PROXY_CLIENT_ID="",
        COORDINATOR_CLIENT_ID=first["PROPLET_CLIENT_ID"],
        COORDINATOR_CLIENT_KEY=first["PROPLET_CLIENT_KEY"],
    )
    error = await place.refusal()
    lines = [line.strip() for line in error.splitlines()]
    assert lines[1:6] == [
        "proplet-1: it exists, but PROPLET_CLIENT_KEY is empty",
        "proplet-2: identity refuses PROPLET_2_CLIENT_KEY: it was revoked or replaced, or is mistyped",
        f"proplet-3: PROPLET_3_CLIENT_ID is <YOUR_CLIENT_ID>, but its id is {first['PROPLET_3_CLIENT_ID']}",
        f"fl-coordinator: COORDINATOR_CLIENT_ID is {first['PROPLET_CLIENT_ID']}, but its id is {first['COORDINATOR_CLIENT_ID']}",
        "proxy: it exists, but PROXY_CLIENT_ID is empty",
    ]
    assert f"propeller provision --env-file {place.path} --rotate" in error
    for name in PROVISIONED_CLIENTS:  # nothing was changed at identity either
        assert await place.api.accepts(first[id_variable(name)], first[key_variable(name)])
    shown = await place.run(rotate=True)
    assert shown.count("  new key\n") == 7
    assert "--force-recreate" in shown
    assert await place.working() == list(PROVISIONED_CLIENTS)
    assert place.values[id_variable("proxy")] == first[id_variable("proxy")]
    for name in PROVISIONED_CLIENTS:
        assert not await place.api.accepts(first[id_variable(name)], first[key_variable(name)])
    assert (
        EnvFile.read(place.path.with_name("deploy.env.bak")).values["PROPLET_3_CLIENT_ID"]
        == "<YOUR_CLIENT_ID>"
    )


async def test_a_client_that_was_deleted_is_made_anew(place: Place) -> None:
    await place.run()
    before = place.values
    await place.call("DELETE", f"/{before['PROXY_DOMAIN_ID']}/clients/{before['PROXY_CLIENT_ID']}")
    shown = await place.run()
    assert "new (identity does not know the id that was there)" in shown
    assert {name for name, value in place.values.items() if before[name] != value} == {
        "PROXY_CLIENT_ID",
        "PROXY_CLIENT_KEY",
    }
    assert await place.working() == list(PROVISIONED_CLIENTS)


async def test_a_wrong_domain_and_channel_are_corrected_and_named(place: Place) -> None:
    await place.run()
    right = place.values
    place.put(
        MANAGER_DOMAIN_ID="old-domain", PROXY_CHANNEL_ID="old-channel", PROXY_DOMAIN_ID="0123456789" * 4
    )
    shown = await place.run()
    assert "corrected: MANAGER_DOMAIN_ID was old-domain\n" in shown
    assert "corrected: PROXY_CHANNEL_ID was old-channel\n" in shown
    assert "corrected: PROXY_DOMAIN_ID was 01234567…\n" in shown  # it may be a key in the wrong place
    assert place.values == right


async def test_what_is_disabled_is_named_also_when_keys_are_rotated(place: Place) -> None:
    await place.run()
    values = place.values
    domain, channel, client = (
        values[name] for name in ("MANAGER_DOMAIN_ID", "MANAGER_CHANNEL_ID", "PROXY_CLIENT_ID")
    )
    for path, name in (
        (f"/{domain}/clients/{client}", "proxy"),
        (f"/{domain}/channels/{channel}", "fl"),
        (f"/domains/{domain}", "fl-demo"),
    ):
        await place.call("POST", f"{path}/disable")
        for rotate in (False, True):
            assert f"{name} is disabled; enable it at identity: POST {path}/enable" in await place.refusal(
                rotate=rotate
            )
        await place.call("POST", f"{path}/enable")
    assert "nothing was changed" in await place.run()


async def test_ids_of_an_identity_that_is_gone_are_replaced(place: Place) -> None:
    place.path.write_text("".join(f"{name}=stale\n" for name in PROVISIONED_VARIABLES))
    shown = await place.run()
    assert await place.working() == list(PROVISIONED_CLIENTS)
    assert shown.count("does not know the id") == 7
    assert "stale" not in place.path.read_text()


async def test_the_proxy_may_use_the_managers_client_but_two_proplets_not_the_same(place: Place) -> None:
    """The guide's shortcut for a first try."""
    await place.run()
    values = place.values
    place.put(PROXY_CLIENT_ID=values["MANAGER_CLIENT_ID"], PROXY_CLIENT_KEY=values["MANAGER_CLIENT_KEY"])
    assert "nothing was changed" in await place.run()
    place.put(
        PROPLET_2_CLIENT_ID=values["PROPLET_CLIENT_ID"], PROPLET_2_CLIENT_KEY=values["PROPLET_CLIENT_KEY"]
    )
    assert f"proplet-2: PROPLET_2_CLIENT_ID is {values['PROPLET_CLIENT_ID']}" in await place.refusal()


async def test_a_key_that_could_not_be_written_is_said_to_be_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = EnvFile.write, 3

    def full_soon(file: EnvFile, text: str, *, backup: bool = True) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise StartError(f"{file.path} cannot be written: No space left on device")
        return write(file, text, backup=backup)

    lost = r"No space left on device; the key of proplet-2 is lost with it.*--rotate"
    with monkeypatch.context() as patched:
        patched.setattr(EnvFile, "write", full_soon)
        with pytest.raises(StartError, match=lost):
            await place.run()
    assert place.values["PROPLET_CLIENT_KEY"]
    error = await place.refusal()
    assert "proplet-2: it exists, but PROPLET_2_CLIENT_ID is empty" in error
    assert "proplet-1" not in error
    await place.run(rotate=True)
    assert await place.working() == list(PROVISIONED_CLIENTS)


@pytest.mark.parametrize("rotate", [False, True])
async def test_two_at_once_lose_no_key(place: Place, rotate: bool) -> None:
    if rotate:
        await place.run()
    await asyncio.gather(place.run(rotate=rotate), place.run(rotate=rotate), place.run(rotate=rotate))
    assert await place.working() == list(PROVISIONED_CLIENTS)
    assert len(place.path.read_text().splitlines()) == 20


async def test_identity_started_anew_knows_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site.at(tmp_path)
    for expected in ("--force-recreate", "nothing was changed"):
        async with served(site.identity) as http:
            api = IdentityApi(*[str(http.base_url)] * 4)
            place = Place(site, tmp_path / ".env", api, capsys)
            assert expected in await place.run()
            await api.aclose()


async def test_who_logs_in_is_said_by_the_environment_else_the_file_else_the_guide(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.path.write_text("IDENTITY_ADMIN_PASSWORD='wrong in file'\nIDENTITY_ADMIN_USERNAME=admin\n")
    assert f"refuses the user 'admin' with the password from {place.path}" in await place.refusal()
    monkeypatch.setenv("IDENTITY_ADMIN_PASSWORD", "wrong in environment")
    error = await place.refusal()
    assert "with the password from the environment" in error
    assert "wrong in" not in error
    monkeypatch.setenv("IDENTITY_ADMIN_PASSWORD", PASSWORD)
    assert "--force-recreate" in await place.run()


async def test_identity_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.cli.provision.PAUSE_S", 0.02)
    site, shown = Site.at(tmp_path), ""
    place = Place(site, tmp_path / ".env", IdentityApi(*["http://127.0.0.1:1"] * 4), capsys)
    provisioning = asyncio.create_task(place.run(wait_s=60))

    def told() -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return f"Waiting for identity at {place.url}, up to 60 s" in shown

    await eventually(told)
    async with served(site.identity):
        assert "--force-recreate" in await provisioning
    await place.api.aclose()


async def test_an_identity_that_hangs_or_is_away_or_is_something_else_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.cli.provision.HEALTH_S", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    for url, expected in {
        f"http://127.0.0.1:{port}": f"does not answer at http://127.0.0.1:{port} (ReadTimeout); start it",
        f"http://127.0.0.1:{free_port()}": "All connection attempts failed",
        "localhost:9002": "write it as http://host:9002",
        "http://x:99999": "write it as http://host:9002",
    }.items():
        with pytest.raises(StartError) as caught:
            await asyncio.to_thread(run_provision, place.path, url, None, rotate=False, wait_s=0)
        assert expected in str(caught.value)
    silent.close()
    assert not place.path.exists()


async def test_a_file_that_cannot_be_written_leaves_identity_alone(place: Place) -> None:
    place.path.write_text("A=1\n")
    place.path.chmod(0o400)
    assert "is read-only" in await place.refusal()
    place.path = place.path.parent / "missing" / ".env"
    with pytest.raises(StartError, match="No such file or directory"):
        await place.run()
    assert await place.api.domain("fl-demo") is None


async def test_clear_empties_the_variables_and_nothing_else(place: Place) -> None:
    place.path.write_text("A=1\nMANAGER_CLIENT_ID=\n")
    await place.run()
    full = place.path.read_text()
    run_clear(place.path)
    assert f"the previous file is {place.path}.bak" in place.capture.readouterr().out
    assert place.values == {"A": "1", **dict.fromkeys(PROVISIONED_VARIABLES, "")}
    assert place.path.with_name("deploy.env.bak").read_text() == full
    run_clear(place.path)
    assert "warning:" in place.capture.readouterr().out
    assert place.path.with_name("deploy.env.bak").read_text() == full


def test_clear_adds_what_is_missing_in_order_under_a_heading(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("PROXY_CLIENT_ID=x\n")
    run_clear(path)
    absent = sorted(set(PROVISIONED_VARIABLES) - {"PROXY_CLIENT_ID"})
    added = "".join(f"{name}=\n" for name in absent)
    assert path.read_text() == f"PROXY_CLIENT_ID=\n\n# Provisioned IDs (cleared)\n{added}"


def test_the_command_line(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    missing = propeller("provision", "clear", "--env-file", str(env))
    assert missing.returncode == 1
    assert missing.stderr == f"error: {env}: there is no such file; name it with --env-file\n"
    with pytest.raises(StartError, match=f"start it: propeller up --state {tmp_path}"):
        run_provision(env, None, tmp_path, rotate=False, wait_s=0)
    for wrong in (
        ["undo"],
        ["clear", "--rotate"],
        ["--state", "x", "--rotate"],
        ["--state", "x", "--identity-url", "http://y"],
        ["--wait", "soon"],
    ):
        assert CliRunner().invoke(app, ["provision", *wrong, "--env-file", str(env)]).exit_code == 2


def test_the_example_is_the_command_with_this_repositorys_file(tmp_path: Path) -> None:
    script = tmp_path / "examples" / "fl-demo" / "provision.py"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "fl-demo" / "provision.py", script)
    (tmp_path / "deploy").mkdir()
    env = tmp_path / "deploy" / ".env"
    env.write_text("PROXY_CLIENT_ID=x\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    run = [sys.executable, str(script), "clear"]
    result = subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Cleared the ids and keys in ../deploy/.env")
    assert env.read_text().startswith("PROXY_CLIENT_ID=\n")


def test_the_example_without_an_installation_says_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "examples" / "fl-demo" / "provision.py"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "fl-demo" / "provision.py", script)
    bare: dict[str, Any] = {"env": {"PATH": os.environ["PATH"]}, "cwd": tmp_path}
    run = [sys.executable, "-S", "-E", str(script)]  # no installed packages
    result = subprocess.run(run, **bare, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: propeller is not installed; run 'make setup' in the repository first\n"
