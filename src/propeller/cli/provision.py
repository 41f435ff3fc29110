"""``propeller provision`` and ``propeller provision clear``."""

import asyncio
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from propeller.cli.terminal import Terminal
from propeller.errors import StartError
from propeller.process.http import ServiceError, verify_for
from propeller.process.retry import retry
from propeller.process.tls import trust_stack
from propeller.stack.env_file import PROVISIONED_VARIABLES, READERS, EnvFile, locked_folder
from propeller.stack.env_provisioning import Credentials, EnvProvisioner, ProvisioningResult
from propeller.stack.provisioning import CHANNEL, DOMAIN, IdentityApi
from propeller.stack.state_folder import StateFolder

DEFAULT_PORT, _PORT = "9002", "PORT_IDENTITY_USERS"
"""Where deploy/compose.yaml publishes identity, and the variable that says so."""

DEFAULT_ADMIN, DEFAULT_PASSWORD = "admin", "12345678"
"""Who to log in as where nothing else is said. ``propeller up`` makes a random password unless it is told this one."""

TIMEOUT_S, HEALTH_S, PAUSE_S = 10.0, 2.0, 0.5
"""How long a call and a health check may take, and the time between health checks, in seconds."""

CLEARED = "# Provisioned IDs (cleared)"

_USERNAME, _PASSWORD = "IDENTITY_ADMIN_USERNAME", "IDENTITY_ADMIN_PASSWORD"


@dataclass(frozen=True)
class IdentitySource:
    """Where identity is, the user to log in as, and the keys that are known already.

    Attributes:
        urls: of users, domains, channels and clients.
        username: of an admin.
        password: the same user's.
        password_from: where the password comes from, for a person.
        known: ids and keys of clients.
    """

    urls: tuple[str, str, str, str]
    username: str
    password: str = field(repr=False)
    password_from: str
    known: Mapping[str, Credentials] = field(default_factory=dict, repr=False)


def run_provision(
    path: Path,
    url: str | None,
    state: Path | None,
    *,
    rotate: bool,
    wait_s: float,
    compat: Collection[str] = (),
) -> None:
    """Provision, and say what there is and what to do next; ``compat`` names proplets of absmach/propeller.

    Raises:
        StartError: with the cause and the remedy.
    """
    console = Terminal(soft_wrap=True)
    file = EnvFile.read(path)
    file.check_writable()
    source = _stack_source(state) if state else _environment_source(url, file)
    with locked_folder(
        path, lambda: console.print(f"Another 'propeller provision' uses {path}; waiting for it …")
    ):
        result = asyncio.run(_provision(source, path, console, rotate=rotate, wait_s=wait_s, compat=compat))
    _show(console, result, path)


def run_clear(path: Path) -> None:
    """Empty the variables that provisioning writes.

    Raises:
        StartError: there is no such file, or it may not be written.
    """
    console = Terminal(soft_wrap=True)
    with locked_folder(path, lambda: console.print(f"A 'propeller provision' uses {path}; waiting for it …")):
        file = EnvFile.read(path)
        if file.text is None:
            raise StartError(f"{path}: there is no such file; name it with --env-file")
        if file.write(file.updated(dict.fromkeys(sorted(PROVISIONED_VARIABLES), ""), CLEARED)):
            console.print(f"Cleared the ids and keys in {path}; the previous file is {file.backup}.")
        else:
            console.print(f"warning: {path} has no ids or keys to clear.")


def _stack_source(folder: Path) -> IdentitySource:
    stack = StateFolder(folder).read_stack()
    if stack is None:
        raise StartError(f"no stack is ready on {folder}; start it: propeller up --state {folder}")
    trust_stack(stack.get("ca"))
    identity: dict[str, str] = stack["services"]["identity"]
    admin: dict[str, str] = stack["admin"]
    urls = (identity["users"], identity["domains"], identity["channels"], identity["clients"])
    return IdentitySource(
        urls, admin["username"], admin["password"], f"{folder}/stack.json", stack["clients"]
    )


def _environment_source(url: str | None, file: EnvFile) -> IdentitySource:
    values = file.values
    url = url or f"http://localhost:{os.environ.get(_PORT) or values.get(_PORT) or DEFAULT_PORT}"
    if not _is_address(url):
        raise StartError(f"identity's address {url!r} is not valid; write it as http://host:9002")
    username = os.environ.get(_USERNAME) or values.get(_USERNAME) or DEFAULT_ADMIN
    passwords = {
        "the environment": os.environ.get(_PASSWORD),
        str(file.path): values.get(_PASSWORD),
        "the guide, as none is set": DEFAULT_PASSWORD,
    }
    password_from, password = next((source, password) for source, password in passwords.items() if password)
    return IdentitySource((url, url, url, url), username, password, password_from)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        return False


async def _provision(
    source: IdentitySource,
    path: Path,
    console: Console,
    *,
    rotate: bool,
    wait_s: float,
    compat: Collection[str],
) -> ProvisioningResult:
    api = IdentityApi(*source.urls, timeout=TIMEOUT_S)
    try:
        await _wait_for_identity(source.urls[0], console, wait_s)
        await _login(api, source)
        return await EnvProvisioner(api, path, rotate, source.known, compat).run()
    finally:
        await api.aclose()


class _NotHealthyError(Exception):
    """Identity does not answer as it should; the text says how."""


async def _wait_for_identity(url: str, console: Console, wait_s: float) -> None:
    """Wait until the identity service answers.

    Raises:
        StartError: it does not, in so many seconds.
    """
    told = False

    def tell(_error: BaseException, _delay: float) -> None:
        nonlocal told
        if not told:
            console.print(f"Waiting for identity at {url}, up to {wait_s:g} s …")
            told = True

    async with httpx.AsyncClient(timeout=HEALTH_S, trust_env=False, verify=verify_for(url)) as http:

        async def ask() -> None:
            try:
                if (await http.get(f"{url}/health")).status_code in {200, 404}:
                    return
            except httpx.HTTPError as error:
                raise _NotHealthyError(str(error) or type(error).__name__) from None
            raise _NotHealthyError("it is not healthy")

        try:
            await retry(
                ask,
                delays=(PAUSE_S,),
                on=lambda error: isinstance(error, _NotHealthyError),
                forever=True,
                timeout_s=wait_s,
                failed=tell,
            )
        except _NotHealthyError as error:
            raise StartError(
                f"identity does not answer at {url} ({error}); start it ('propeller up', or the service identity "
                "of deploy/compose.yaml), or say where it is with --identity-url or --state"
            ) from None


async def _login(api: IdentityApi, source: IdentitySource) -> None:
    url = source.urls[0]
    try:
        await api.login(source.username, source.password)
    except ServiceError as error:
        if error.status == 401:
            raise StartError(
                f"identity at {url} refuses the user {source.username!r} with the password from {source.password_from}; set "
                f"{_USERNAME} and {_PASSWORD} to those it was started with (a stack of 'propeller up': --state DIR)"
            ) from None
        raise StartError(
            f"cannot log in at {url}: {error}; is that the identity service? (--identity-url)"
        ) from None


def _show(console: Console, result: ProvisioningResult, path: Path) -> None:
    rows: list[tuple[str, ...]] = [
        ("domain", DOMAIN, result.domain_id, ""),
        ("channel", CHANNEL, result.channel_id, ""),
        *(("client", client.name, client.id, client.action) for client in result.clients),
    ]
    for kind, name, known_as, action in rows:
        console.print(f"{kind:<8} {name:<15} {known_as}  {action}".rstrip())
    for line in result.corrected:
        console.print(f"corrected: {line}")
    if not result.changed:
        console.print(f"\n{path} already has all of this; nothing was changed.")
        return
    console.print(
        f"\nWrote ids and keys to {path}. Now recreate the services that use them (a restart is not enough):"
    )
    console.print(
        f"  docker compose -f deploy/compose.yaml --env-file {path} up -d --force-recreate {READERS}"
    )
