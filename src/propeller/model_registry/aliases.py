"""Aliases: names that stand for a model version, and may be given another one at any time.

They are one file, ``aliases.json``, replaced whole under a lock that the registries on a folder share.
"""

import json
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from propeller.errors import InvalidError, NotFoundError, PropellerError
from propeller.process.file_lock import FileLock
from propeller.process.files import write_durably
from propeller.protocol.ids import ID_RULE, InvalidIdError, check_id

LATEST = "latest"
"""Stands for the largest version, and cannot be an alias; ``EXPERIMENT/latest`` can."""

_TAKEN = frozenset({"info", "state", "diff"})
"""Last parts of paths under ``/models`` that mean something else there."""


class DamagedAliasesError(PropellerError):
    """The file of the aliases cannot be used."""


class AliasStore:
    """The aliases of a folder. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is that of the model versions."""
        self._file, self._lock_file = folder / "aliases.json", folder / ".aliases.lock"
        self._read: tuple[tuple[int, int, int] | None, dict[str, int]] = (None, {})

    def all(self) -> dict[str, int]:
        """Every alias and its version, by name.

        Raises:
            DamagedAliasesError: their file cannot be used.
        """
        try:
            with self._file.open("rb") as file:
                status = os.fstat(file.fileno())
                stamp = status.st_ino, status.st_size, status.st_mtime_ns
                seen, aliases = self._read
                if stamp != seen:
                    aliases = _parse(file.read())
                    self._read = stamp, aliases  # one assignment, as threads read it
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DamagedAliasesError(
                f"{self._file.name} cannot be used ({error}); restore it from a backup, or remove it and set the aliases again"
            ) from None
        return aliases

    def version(self, name: str) -> int:
        """The version that an alias stands for.

        Raises:
            NotFoundError: there is no such alias; the text names those that are spelled like it.
            InvalidError: it cannot be one.
        """
        aliases = self.all()
        if name not in aliases:
            check_alias(name)
            near = get_close_matches(name, aliases, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise NotFoundError(
                f"Model not found: there is no alias {name!r}; {hint}GET /aliases lists those there are"
            )
        return aliases[name]

    def put(self, name: str, version: int) -> None:
        """Have an alias stand for a version from now on; on the disk when this returns.

        Raises:
            InvalidError: it cannot be an alias.
        """
        check_alias(name)
        self._change(lambda aliases: aliases.update({name: version}))

    def delete(self, name: str) -> None:
        """Forget an alias.

        Raises:
            NotFoundError: there is none of this name.
        """
        self.version(name)
        self._change(lambda aliases: aliases.pop(name, None))

    def _change(self, change: Callable[[dict[str, int]], object]) -> None:
        with FileLock(self._lock_file):
            before = self.all()
            after = dict(before)
            change(after)
            if after != before:
                write_durably(self._file, json.dumps(after, indent=1, sort_keys=True).encode())


def check_alias(name: str) -> str:
    """Return ``name`` if it can be an alias: an id, or two with ``/`` between them.

    Raises:
        InvalidError: it cannot.
    """
    parts = name.split("/")
    try:
        for part in parts:
            check_id(part)
    except InvalidIdError:
        parts = []
    if not 1 <= len(parts) <= 2:
        raise InvalidError(
            f"Invalid version: {name[:80]!r} is not a number from 0, nor 'latest', nor an alias: that is NAME or EXPERIMENT/NAME, "
            f"each {ID_RULE}"
        )
    if parts[-1] in _TAKEN or (len(parts) == 1 and (name == LATEST or name.isdigit())):
        raise InvalidError(
            f"alias: {name!r} means something else: an alias is no number, not {LATEST!r} alone, and does not end in "
            f"{', '.join(sorted(_TAKEN))}"
        )
    return name


def _parse(content: bytes) -> dict[str, int]:
    aliases = json.loads(content)
    if not isinstance(aliases, dict) or not all(type(version) is int for version in aliases.values()):
        raise ValueError("it is not an object of versions")
    return aliases
