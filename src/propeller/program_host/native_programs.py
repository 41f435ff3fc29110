"""Native programs in a service's own sandbox: whose run there, and with which interpreter."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from propeller.errors import PropellerError, StartError, UnprocessableError
from propeller.native.interpreter import Interpreter
from propeller.oci.reference import DefaultRegistry, Reference
from propeller.oci.signers import Signers
from propeller.protocol.requirements import Requirements
from propeller.wasm.confinement import available_protections
from propeller.wasm.messages import CONFINING


@dataclass(frozen=True)
class NativePrograms:
    """What a service's owner allows.

    Attributes:
        interpreter: runs them, with its libraries.
        repositories: patterns of repositories with their registry (``*`` is any text); none: any, of signers whom the service believes.
        setting: the variable that lists them, for errors.
        default: where references are that name no registry.
    """

    interpreter: Interpreter
    repositories: tuple[str, ...]
    setting: str
    default: DefaultRegistry

    @classmethod
    def find(
        cls,
        signers: Signers,
        command: Path,
        repositories: str,
        default: DefaultRegistry,
        keep_out: Iterable[Path],
    ) -> Self:
        """See that the owner says whose programs run, and that they are confined here, and ask the interpreter what it is; runs it.

        Args:
            signers: whom the service believes, and whose settings these are: the ``coordinator``'s.
            command: the interpreter's file.
            repositories: patterns, separated by commas.
            default: where references are that name no registry.
            keep_out: folders that no program may read: the service's own.

        Raises:
            StartError: nobody's run, a pattern is none, this kernel does not confine them, or it cannot run them; with the remedy.
        """
        prefix = f"{signers.service.upper()}_NATIVE"
        patterns = tuple(part.strip() for part in repositories.split(",") if part.strip())
        if not patterns and not signers:
            raise StartError(
                f"{prefix}_PYTHON: say whose native programs the {signers.service} runs: {prefix}_REPOSITORIES=localhost:5000/*, or "
                f"{signers.setting}"
            )
        for pattern in patterns:
            if "://" in pattern or pattern != pattern.lower() or ("/" not in pattern and pattern != "*"):
                raise StartError(
                    f"{prefix}_REPOSITORIES: {pattern!r:.80} matches no repository: write its registry and name in lower case, without a "
                    "scheme and with * for any text, as ghcr.io/acme/*"
                )
        if missing := [name for name in CONFINING if name not in available_protections()]:
            raise StartError(
                f"{prefix}_PYTHON: this kernel does not confine native programs, it lacks {', '.join(missing)}: unset it"
            )
        interpreter = Interpreter.find(command, keep_out=keep_out, setting=f"{prefix}_PYTHON")
        return cls(interpreter, patterns, f"{prefix}_REPOSITORIES", default)

    def explain(self, reference: str, required: Requirements) -> str | None:
        """Why a native program cannot run, by what its artifact says that it requires; ``None``: it can."""
        try:
            self.check(reference)
        except PropellerError as error:
            return str(error)
        return self.interpreter.explain_lacking(required)

    def check(self, reference: str) -> None:
        """See that a native program may run.

        Raises:
            UnprocessableError: its repository is not one of these.
        """
        parsed = Reference.parse(reference, self.default)
        repository = f"{parsed.registry.host}/{parsed.repository}"
        # The brackets of an IPv6 address are meant as they are.
        patterns = [pattern.replace("[", "[[]") for pattern in self.repositories]
        if patterns and not any(fnmatch.fnmatchcase(repository, pattern) for pattern in patterns):
            raise UnprocessableError(
                f"native programs of {repository} do not run here, only those of {', '.join(self.repositories)} ({self.setting})"
            )
