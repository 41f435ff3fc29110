"""Fixtures that every test may use, and the order of the files."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from support.nats import open_broker
from support.postgresql import create_database, find_programs, open_postgresql
from support.python_programs import CACHE_HOME

# A shell's background job ignores Ctrl-C, and so would every process that a test starts, for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs and their runtime are built and compiled once for all tests, and not with what the user has.
os.environ["XDG_CACHE_HOME"] = str(CACHE_HOME)
os.environ["XDG_CONFIG_HOME"] = str(CACHE_HOME)  # nobody's login

# Where a test does not configure logs itself: frames in boxes cost a tenth of some rooms' tests.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.set_exc_info,
        structlog.processors.TimeStamper(fmt="%H:%M:%S"),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    cache_logger_on_first_use=False,
)

# How long an example takes says nothing on a machine that runs other tests beside it.
# CI tries the same examples in each run, so that it fails for what was changed and not for a seed; elsewhere each run tries others, and
# more of them.
_same = bool(os.environ.get("PROPELLER_SAME_EXAMPLES"))
settings.register_profile(
    "many examples", deadline=None, derandomize=_same, max_examples=40 if _same else 100
)
settings.register_profile("few examples", deadline=None, derandomize=_same, max_examples=10)
settings.load_profile("few examples" if os.environ.get("PROPELLER_FEW_EXAMPLES") else "many examples")


LONG = (
    # Of the first four one needs the runtime of programs in Python, one Zig's library and Go's: what is built once, nobody waits for.
    "programs/test_logreg.py",
    "cli/test_programs_cli.py",
    "e2e/test_native_programs.py",
    "deploy/test_containers.py",
    "e2e/test_example_experiments.py",
    "e2e/test_templates.py",
    "e2e/test_experiments.py",
    "faults/test_soak.py",
    "e2e/test_gallery.py",
    "e2e/test_ten_devices.py",
    "docs/test_guide.py",
    "e2e/test_fl_demo.py",
    "faults/test_faults.py",
    "e2e/test_up.py",
    "programs/test_python_programs.py",
    "docs/test_readme.py",
    "programs/test_strategies.py",
    "e2e/test_registries.py",
    "simulation/test_simulate.py",
    "programs/test_runtime.py",
    "native/test_hostile.py",
    "proplet/test_tasks.py",
    "coordinator/test_experiments.py",
    "docs/test_simulation_page.py",
    "e2e/test_numbers.py",
    "e2e/test_join.py",
    "e2e/test_sdk_and_commands.py",
    "e2e/test_readable_keys.py",
    "security/test_default_stack.py",
    "docs/test_second_machine.py",
    "doctor/test_doctor.py",
    "e2e/test_own_program.py",
    "store/test_migrations.py",
    "store/test_ownership.py",
)
"""The files that take longest, which begin first: a run ends when the last of several processes does."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist begin with the files that are first, not with those that have most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put ``LONG`` first."""
    folder = Path(__file__).parent
    missing = [name for name in LONG if not (folder / name).is_file()]
    if missing:
        raise pytest.UsageError(f"LONG in tests/conftest.py: there is no {', '.join(missing)}")
    places = {folder / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def broker_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The MQTT port of a broker that lets anyone in; use ids of your own, as tests share it."""
    with open_broker(tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture(scope="session")
def postgresql() -> Iterator[tuple[Path, str]]:
    """A PostgreSQL server's programs and the folder of its socket."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    with open_postgresql(programs) as host:
        yield programs, host


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: SQLite, and PostgreSQL where its programs are installed."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'd.db'}"
    programs, host = request.getfixturevalue("postgresql")
    return create_database(programs, host, f"d{uuid.uuid4().hex}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where no test may skip (continuous integration), a skipped one fails the run."""
    if os.environ.get("PROPELLER_NO_SKIPS") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("tests were skipped, and PROPELLER_NO_SKIPS is set", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The exit status that goes with it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter is not None and reporter.stats.get("skipped")
    if os.environ.get("PROPELLER_NO_SKIPS") and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
