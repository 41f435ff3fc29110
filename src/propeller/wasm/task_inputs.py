"""What the program of a federated task is given: environment variables, and files in ``/in`` (docs/programs.md)."""

from dataclasses import dataclass, field
from pathlib import Path

MAX_ENV_BYTES = 1024 * 1024
"""Below this size model and dataset are also given as environment variables."""

TENSORS_FILE = "update.safetensors"
"""In ``/out``: the tensors of an update that are not in its document."""


@dataclass(frozen=True)
class TaskInputs:
    """A task's inputs: environment variables, and files by their name in ``/in``: contents, or paths of large ones."""

    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes | Path] = field(default_factory=dict)

    def add_document(self, file: str, variable: str, content: bytes) -> None:
        """Give a JSON document as a file, and as a variable if it is small."""
        self.files[file] = content
        if len(content) < MAX_ENV_BYTES:
            self.env[variable] = content.decode().strip()
