"""Databases to try: SQLite, and PostgreSQL where its programs are installed."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.postgresql import create_database, find_programs, open_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[tuple[Path, str]]:
    """A server's programs and the folder of its socket."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    with open_postgresql(programs) as host:
        yield programs, host


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'd.db'}"
    programs, host = request.getfixturevalue("postgresql")
    return create_database(programs, host, f"d{uuid.uuid4().hex}")
