"""The state folder of a stack: what it keeps between starts, and what it tells others about itself."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from propeller.errors import StartError
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.files import write_durably


@dataclass
class Secrets:
    """What a stack makes once and keeps (mode 0600).

    Attributes:
        broker: from which broker and identity derive what they share.
        admin_username: of identity's first user.
        admin_password: the same user's password.
        domain_id: of the domain that the stack works in.
        channel_id: of its channel.
        clients: id and key of each client by name.
        ports: that the stack had, where it took free ones.
        client_keys: by which identity encrypts clients' keys that admins may read again; empty where it keeps none.
    """

    broker: str
    admin_username: str
    admin_password: str
    domain_id: str = ""
    channel_id: str = ""
    clients: dict[str, dict[str, str]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    client_keys: str = ""


class StateFolder:
    """A state folder, used by one stack at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._lock = FileLock(self.lock_file)

    @property
    def lock_file(self) -> Path:
        """``lock``: who uses the folder holds it."""
        return self.folder / "lock"

    @property
    def stack_file(self) -> Path:
        """``stack.json``: there while the stack is ready to be used."""
        return self.folder / "stack.json"

    @property
    def env_file(self) -> Path:
        """``.env``: ids and keys by the names of the guide's variables; it stays, as they do."""
        return self.folder / ".env"

    @property
    def secrets_file(self) -> Path:
        """``secrets.json``."""
        return self.folder / "secrets.json"

    def log_file(self, service: str) -> Path:
        """Where a service logs."""
        return self.folder / "logs" / f"{service}.log"

    def audit_log(self, service: str) -> Path:
        """Where it is written down who changed what at a service."""
        return self.folder / "audit" / service / "audit.jsonl"

    def service_folder(self, service: str) -> Path:
        """A folder that is a service's own."""
        return self.folder / service

    def lock(self) -> None:
        """Make the folder and keep other stacks from it until ``release`` or the end of the process.

        Raises:
            StartError: another stack runs on it, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)  # also one that was there before
            self._lock.acquire(0)
        except LockedError:
            raise StartError(
                f"a stack already runs on {self.folder}, or is restored there (process {self._locked_by() or 'unknown'}); "
                "stop it, or choose another folder with --state"
            ) from None
        except OSError as error:
            raise StartError(
                f"cannot use the state folder {self.folder}: {error.strerror}; choose another with --state"
            ) from None
        os.truncate(self._lock.descriptor, 0)
        os.pwrite(self._lock.descriptor, str(os.getpid()).encode(), 0)
        self.stack_file.unlink(missing_ok=True)

    def release(self) -> None:
        """Let another stack use the folder."""
        self.stack_file.unlink(missing_ok=True)
        self._lock.release()

    def running_process(self) -> int | None:
        """The process of the stack that runs on the folder, ``None`` if there is none."""
        if not self.lock_file.exists():  # asking leaves no file behind
            return None
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(0)
        except LockedError:
            return self._locked_by()
        except OSError:
            return None
        lock.release()
        return None

    def _locked_by(self) -> int | None:
        """The process that wrote its id into the lock file."""
        try:
            text = self.lock_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return int(text) if text.isdigit() else None

    def load_secrets(self, admin_username: str | None = None, admin_password: str | None = None) -> Secrets:
        """Read the secrets, or make them; a given admin name and password win over the kept ones.

        Raises:
            StartError: the file is damaged.
        """
        kept = self._read_secrets()
        if kept is None:
            kept = Secrets(secrets.token_urlsafe(32), "admin", secrets.token_urlsafe(12))
        kept.admin_username = admin_username or kept.admin_username
        kept.admin_password = admin_password or kept.admin_password
        self.save_secrets(kept)
        return kept

    def save_secrets(self, kept: Secrets) -> None:
        """Write the secrets."""
        _write_private_json(self.secrets_file, asdict(kept))

    def write_stack(self, stack: dict[str, Any]) -> None:
        """Write ``stack.json``: from now on others may use the stack."""
        _write_private_json(self.stack_file, stack)

    def read_stack(self) -> dict[str, Any] | None:
        """What a running stack says of itself, ``None`` if none is ready."""
        try:
            stack: dict[str, Any] = json.loads(self.stack_file.read_text())
        except (OSError, ValueError):
            return None
        return stack

    def _read_secrets(self) -> Secrets | None:
        try:
            return Secrets(**json.loads(self.secrets_file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StartError(
                f"{self.secrets_file} cannot be read ({error}); restore it, or move the folder away to start afresh"
            ) from None


def _write_private_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON that only its owner may read, whole or not at all."""
    write_durably(file, f"{json.dumps(content, indent=2)}\n".encode(), mode=0o600)
