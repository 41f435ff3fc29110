"""An ``.env`` file: read as docker compose reads it, and changed a variable at a time; the guide's variables in it.

What is changed, and how, are the rules of absmach/propeller's provisioning scripts, so that either may follow the other.
"""

import contextlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from propeller.errors import StartError
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.files import write_durably
from propeller.stack.services import OPERATOR, SERVICES

_PREFIXES = {spec.client: spec.prefix for spec in SERVICES if spec.client}

GUIDE_PROPLETS = ("proplet-1", "proplet-2", "proplet-3")

GUIDE_CLIENTS = ("manager", *GUIDE_PROPLETS, "fl-coordinator", "proxy")
"""The clients of the guide, by the names that identity knows them by."""

DOMAIN_VARIABLES = ("MANAGER_DOMAIN_ID", "PROPLET_DOMAIN_ID", "PROXY_DOMAIN_ID")
CHANNEL_VARIABLES = ("MANAGER_CHANNEL_ID", "PROPLET_CHANNEL_ID", "PROXY_CHANNEL_ID")

READERS = " ".join(
    container
    for spec in SERVICES
    for container in (("proplet", *GUIDE_PROPLETS[1:]) if spec.is_device else (spec.container_name,))
    if spec.is_device or spec.client or spec.reads_proplets
)
"""The containers of deploy/compose.yaml that read the variables."""

PRIVATE_MODE = 0o600
"""The mode of a file that holds keys."""

_ID_LENGTH = len("3fe95a65-74f1-4ede-bf20-ef565f04cecb")


def shown_id(value: str) -> str:
    """An id, or the beginning of what stands in its place: it may be a key."""
    return value if len(value) <= _ID_LENGTH else f"{value[:8]}…"


def prefix_of(client: str) -> str:
    """What a client's variables begin with: ``MANAGER``, ``PROPLET`` for ``proplet-1``, ``PROPLET_2`` for the next."""
    return _PREFIXES.get(client) or client.upper().replace("-", "_").removesuffix("_1")


def id_variable(client: str) -> str:
    """The variable that holds a client's id."""
    return f"{prefix_of(client)}_CLIENT_ID"


def key_variable(client: str) -> str:
    """The variable that holds a client's key."""
    return f"{prefix_of(client)}_CLIENT_KEY"


def client_variables(names: Iterable[str]) -> list[str]:
    """The variables of some clients, ids and keys in turn."""
    return [variable(name) for name in names for variable in (id_variable, key_variable)]


GUIDE_VARIABLES = (*DOMAIN_VARIABLES, *CHANNEL_VARIABLES, *client_variables(GUIDE_CLIENTS))
"""All eighteen of the guide."""

PROVISIONED_CLIENTS = (*GUIDE_CLIENTS, OPERATOR)
"""Those that ``propeller provision`` makes: the guide's, and one for the person who runs the stack."""

PROVISIONED_VARIABLES = (*GUIDE_VARIABLES, *client_variables([OPERATOR]))


def env_values(domain_id: str, channel_id: str, clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The variables with their values; ``clients`` holds ``id`` and ``key`` of each client by its name."""
    values = dict.fromkeys(DOMAIN_VARIABLES, domain_id) | dict.fromkeys(CHANNEL_VARIABLES, channel_id)
    for name, client in clients.items():
        values |= {id_variable(name): client["id"], key_variable(name): client["key"]}
    return values


def default_env_file() -> Path:
    """``deploy/.env`` where there is a folder ``deploy``, as in this repository; else ``.env``."""
    return Path("deploy/.env") if Path("deploy").is_dir() else Path(".env")


@contextlib.contextmanager
def locked_folder(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keep others who call this from a file's folder for the length of the block; ``on_wait`` is called if it must wait for one.

    Raises:
        StartError: there is no such folder, or it cannot be read.
    """
    folder = path.absolute().parent
    lock = FileLock(folder)
    try:
        os.scandir(folder).close()  # raises where there is no such folder
        try:
            lock.acquire(0)
        except LockedError:
            on_wait()
            lock.acquire()
    except OSError as error:
        raise StartError(f"{path} cannot be written: {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class EnvFile:
    """An ``.env`` file as it was read.

    Attributes:
        path: where it is.
        text: what is in it; ``None`` if there is no such file.
    """

    path: Path
    text: str | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file, which need not exist.

        Raises:
            StartError: it is there and is not a file of ``NAME=value`` lines in UTF-8, or may not be read.
        """
        if path.is_symlink():
            raise StartError(
                f"{path} is a symbolic link, and writing would replace it: name the file that it leads to "
                f"with --env-file {path.resolve()}"
            )
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            return cls(path, None)
        except IsADirectoryError:
            raise StartError(f"{path} is a folder, not an .env file: name another with --env-file") from None
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise StartError(f"{path}, line {line}: not UTF-8; save the file as UTF-8 text") from None
        except OSError as error:
            raise StartError(f"{path} cannot be read: {error.strerror}") from None
        for binding in parse_stream(io.StringIO(text)):
            if binding.error:
                raise StartError(
                    f"{path}, line {_line_of(binding.original.string, binding.original.line)}: not NAME=value, "
                    "or a quotation mark is missing; correct the line"
                )
        return cls(path, text)

    @property
    def values(self) -> dict[str, str]:
        """Every variable with its value; of several lines for one the last counts, and quotes and comments are taken off."""
        found = _parse(self.text or "", interpolate=True)
        return {name: value for name, value in found.items() if value is not None}

    def updated(self, values: Mapping[str, str], heading: str = "") -> str:
        """The text with these values.

        Every line that sets one of the variables is given the new value, as is every line that would if it were no
        comment; variables without a line are added at the end, after an empty line and ``heading``. Nothing else
        changes, line ends included.

        Raises:
            StartError: the change would not have that result (a value goes over several lines, say).
        """
        missing = dict(values)

        def with_value(match: re.Match[str]) -> str:
            name = match["name"]
            if name not in values:
                return match[0]
            missing.pop(name, None)
            start = (
                f"{name}=" if match["mark"] else f"{match['indent']}{match['export']}{name}{match['sign']}"
            )
            return start + values[name]

        text = _LINE.sub(with_value, self.text or "")
        if missing:
            text = _append(text, [heading] * bool(heading) + [f"{name}={missing[name]}" for name in missing])
        self._check_result(text, values)
        return text

    def write(self, text: str, *, backup: bool = True) -> bool:
        """Write the file, for its owner alone; what was in it goes to ``NAME.bak`` beside it, if ``backup`` is on.

        Returns:
            Whether anything was to be changed.

        Raises:
            StartError: the file or its folder may not be written.
        """
        try:
            if self.text == text:
                if stat.S_IMODE(self.path.stat().st_mode) != PRIVATE_MODE:
                    self.path.chmod(PRIVATE_MODE)
                return False
            self.check_writable()
            if backup and self.text is not None:
                self._write(self.backup, self.text)
            self._write(self.path, text)
        except OSError as error:
            raise StartError(f"{self.path} cannot be written: {error.strerror}") from None
        return True

    def _write(self, path: Path, text: str) -> None:
        owner = self.path.stat() if self.text is not None else None
        write_durably(path, text.encode(), mode=PRIVATE_MODE)
        if owner is not None and os.geteuid() == 0:  # or whose file it is could not read it any more
            os.chown(path, owner.st_uid, owner.st_gid)

    @property
    def backup(self) -> Path:
        """Where ``write`` puts what was in the file."""
        return self.path.with_name(f"{self.path.name}.bak")

    def check_writable(self) -> None:
        """Check that ``write`` may write, before anything is done that must be written down.

        Raises:
            StartError: it may not.
        """
        for path in (self.path, self.path.parent):
            # The mode counts too: the superuser may write everywhere, but whoever took that right off a file meant it.
            if path.exists() and not (os.access(path, os.W_OK) and path.stat().st_mode & _ANY_WRITE):
                raise StartError(
                    f"{path} is read-only: allow writing (chmod u+w {path}), or name another with --env-file"
                )

    def _check_result(self, text: str, values: Mapping[str, str]) -> None:
        found, wanted = _parse(text), {**_parse(self.text or ""), **values}
        if found != wanted:
            wrong = {
                name for name in found.keys() | wanted.keys() if found.get(name, 0) != wanted.get(name, 0)
            }
            raise StartError(
                f"{self.path}: {', '.join(sorted(wrong))} cannot be set a line at a time; put each on a line of its own"
            )


_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_LINE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>#?)[ \t]*(?P<export>(?:export[ \t]+)?)"
    r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<sign>[ \t]*=[ \t]*)[^\r\n]*",
    re.MULTILINE,
)


def _parse(text: str, *, interpolate: bool = False) -> dict[str, str | None]:
    return dotenv_values(stream=io.StringIO(text), interpolate=interpolate)


def _append(text: str, lines: list[str]) -> str:
    """Text with lines at its end, apart from what is there, in its own line ends."""
    end = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n"):
        text += end
    apart = [""] if text and text.split("\n")[-2].strip() else []
    return text + "".join(f"{line}{end}" for line in [*apart, *lines])


def _line_of(original: str, line: int) -> int:
    """The line of a statement, which the parser counts from the empty lines before it."""
    return line + original[: len(original) - len(original.lstrip())].count("\n")
