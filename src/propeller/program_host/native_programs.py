"""Native programs in a service's own sandbox: whose run there, and with which interpreter."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from propeller.errors import PropellerError, UnprocessableError
from propeller.native.interpreter import Interpreter
from propeller.oci.reference import Reference
from propeller.protocol.requirements import Requirements


@dataclass(frozen=True)
class NativePrograms:
    """What a service's owner allows.

    Attributes:
        interpreter: runs them, with its libraries.
        repositories: patterns of repositories with their registry (``*`` is any text); none: any, of signers whom the service believes.
        setting: the variable that lists them, for errors.
    """

    interpreter: Interpreter
    repositories: tuple[str, ...]
    setting: str

    @classmethod
    def find(cls, service: str, command: Path, repositories: str, keep_out: Iterable[Path]) -> Self:
        """Ask the interpreter what it is; runs it.

        Args:
            service: whose settings these are: ``coordinator``.
            command: the interpreter's file.
            repositories: patterns, separated by commas.
            keep_out: folders that no program may read: the service's own.

        Raises:
            StartError: it cannot run native programs; the text says why, and the remedy.
        """
        prefix = f"{service.upper()}_NATIVE"
        interpreter = Interpreter.find(command, keep_out=keep_out, setting=f"{prefix}_PYTHON")
        patterns = tuple(part.strip() for part in repositories.split(",") if part.strip())
        return cls(interpreter, patterns, f"{prefix}_REPOSITORIES")

    def explain(self, reference: str, required: Requirements) -> str | None:
        """Why a native program cannot run, by what its artifact says that it requires; ``None``: it can."""
        try:
            self.check(reference)
        except PropellerError as error:
            return str(error)
        return self.interpreter.explain_lacking(required)

    def check(self, reference: str) -> None:
        """See that a native program may run; ``reference`` names it in full.

        Raises:
            UnprocessableError: its repository is not one of these.
        """
        parsed = Reference.parse(reference)
        repository = f"{parsed.registry.host}/{parsed.repository}"
        if self.repositories and not any(
            fnmatch.fnmatchcase(repository, pattern) for pattern in self.repositories
        ):
            raise UnprocessableError(
                f"native programs of {repository} do not run here, only those of {', '.join(self.repositories)} ({self.setting})"
            )
