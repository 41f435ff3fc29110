"""Shared runtimes that were made on this machine, by their digest, in the user's cache."""

import os
from pathlib import Path

from propeller.digests import digest_of, is_digest
from propeller.process.files import write_durably

MAX_RUNTIMES = 4
"""Of 40 MB each."""


def user_cache() -> Path:
    """The folder of what this user's commands can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "propeller"


def runtimes_folder() -> Path:
    """Where runtimes are that were made here."""
    return user_cache() / "runtimes"


def runtime_file(folder: Path, digest: str) -> Path | None:
    """A runtime's file, if it is there; whoever uses it sees whether it is what its digest says."""
    path = folder / f"{digest.removeprefix('sha256:')}.wasm"
    return path if is_digest(digest) and path.is_file() else None


def compiled_files(folder: Path, digest: str) -> list[Path]:
    """What the user's commands have compiled of a runtime, each before its checksum: in the cache that has the folder of runtimes."""
    programs = folder.parent / "sandbox" / "programs"
    made = sorted(programs.glob(f"{digest.removeprefix('sha256:')}.*.native"))
    return [file for one in made for file in (one, one.with_name(f"{one.name}.sum"))]


def keep_runtime(content: bytes, folder: Path | None = None) -> tuple[Path, str]:
    """Keep a runtime; its file and digest. All but the newest few go: programs over them are built again, or pulled."""
    folder = folder or runtimes_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = digest_of(content)
    path = folder / f"{digest.removeprefix('sha256:')}.wasm"
    write_durably(path, content)
    kept = sorted(folder.glob("*.wasm"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in kept[MAX_RUNTIMES:]:
        old.unlink(missing_ok=True)
    return path, digest
