"""The interpreter that runs native programs on a device or for a coordinator: what it is, what it has installed, and how the sandbox's process becomes it."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from propeller.errors import StartError
from propeller.fl.requirements import lacking
from propeller.native_program import NativeProgram, NativeProgramError
from propeller.protocol.requirements import MAX_DISTRIBUTIONS, NativePython, Requirements
from propeller.wasm.messages import ExecTask
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun
from propeller.wasm.task_runs import TEMPORARY

SETTING = "PROPLET_NATIVE_PYTHON"
OLDEST = (3, 11)

_PACKAGE = str(Path(__file__).parents[1])
_ASKED_WITHIN_S = 60.0
_MAX_CHARACTERS = 128

# Runs on whatever the owner named: old syntax, and nothing that is not in the standard library.
_ASK = """
import json, sys
from importlib import metadata
import importlib.util
found = {}
loaded = set()
try:
    with open("/proc/self/maps") as maps:
        loaded = {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
except OSError:
    pass
for one in metadata.distributions():
    name = one.metadata["Name"]
    if name and name not in found:
        found[name] = one.version or ""
print(json.dumps({
    "version": list(sys.version_info[:3]), "prefixes": [sys.prefix, sys.base_prefix], "path": sys.path,
    "loaded": sorted(loaded), "distributions": found, "numpy": importlib.util.find_spec("numpy") is not None,
}))
"""

_BEGIN = (
    "import sys, importlib.util as u; "
    "s = u.spec_from_file_location('propeller', sys.argv[1] + '/__init__.py', submodule_search_locations=[sys.argv[1]]); "
    "m = sys.modules['propeller'] = u.module_from_spec(s); s.loader.exec_module(m); "
    "from propeller.native.%s import main; main()"
)
"""Has this package and nothing else of the proplet's libraries, which may be another Python's."""

_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/sys/devices/system/cpu",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/maps",
    "/dev/urandom",
)
"""What libraries read beside their own folders: the C library's and other shared ones, time zones, the processors, and which libraries the process has (threadpoolctl)."""

_NULL = "/dev/null"


@dataclass(frozen=True)
class Interpreter:
    """A Python with its libraries.

    Attributes:
        command: the file.
        python: its version, and what is installed there.
        readable: the folders and files that a task may read beside its own.
        threads: how many each task is to compute with.
        own_user: whether all of this can be read by a user that owns nothing.
        version: the numbers of its version.
        setting: the variable that named it, for errors.
    """

    command: Path
    python: NativePython
    readable: tuple[str, ...]
    threads: int = 1
    own_user: bool = True
    version: tuple[int, ...] = field(default=())
    setting: str = SETTING

    @classmethod
    def find(
        cls, command: Path, *, threads: int = 1, keep_out: Iterable[Path] = (), setting: str = SETTING
    ) -> Self:
        """Ask an interpreter what it is; runs it.

        Args:
            command: its file, as the owner named it.
            threads: how many each task is to compute with.
            keep_out: folders that no task may read, such as the proplet's own.
            setting: what named the file, for errors.

        Raises:
            StartError: it cannot run native programs; the text says why, and the remedy.
        """
        told = _ask(command, setting)
        version = tuple(int(part) for part in told["version"])
        if version < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise StartError(
                f"{setting}: {command} is Python {'.'.join(map(str, version))}: {oldest} or newer is needed"
            )
        if not told["numpy"]:
            raise StartError(
                f"{setting}: {command} has no NumPy, which native programs are given arrays of: {command} -m pip install numpy"
            )
        libraries = _libraries(told)
        for folder in map(Path.resolve, keep_out):
            inside = [one for one in libraries if folder.is_relative_to(Path(one).resolve())]
            if inside:
                raise StartError(
                    f"{setting}: {command} imports from {inside[0]}, which has {folder} in it, whose files are no program's: use an "
                    "environment of its own (python -m venv), or put that folder elsewhere"
                )
        readable = [*libraries, *(one for one in _SYSTEM if os.path.exists(one))]  # noqa: PTH110
        needed = [str(command.resolve()), *libraries, *told["loaded"]]
        return cls(
            command.absolute(),
            NativePython(
                version=".".join(map(str, version)),
                distributions=_distributions(told["distributions"]),
                complete=len(told["distributions"]) <= MAX_DISTRIBUTIONS,
            ),
            tuple(readable),
            threads,
            all(map(_is_open, needed)),
            version,
            setting,
        )

    def check(self, content: bytes) -> None:
        """See that it has what a program requires.

        Raises:
            ProgramError: it lacks something, or the program is none.
        """
        try:
            program = NativeProgram.decode(content)
        except NativeProgramError as error:
            raise ProgramError(str(error)) from None
        required = Requirements(python=program.requires_python, dependencies=list(program.dependencies))
        if reason := self.explain_lacking(required):
            raise ProgramError(reason)

    def explain_lacking(self, required: Requirements) -> str | None:
        """Why it cannot run a program that requires this; ``None``: it can."""
        missing = lacking(required, self.python)
        if not missing:
            return None
        return (
            f"{self.command}, the Python of native programs here, cannot run it: {missing}. Install that there, or name another "
            f"interpreter ({self.setting})"
        )

    def task(self, run: ProgramRun, folder: Path) -> ExecTask:
        """What the process of a run is to do: become this interpreter, with nothing of the proplet's environment."""
        writable = ["out", _NULL]
        readable = ["in", *self.readable]
        if run.state is not None:
            (readable if run.state.target is None else writable).append("state")
        document = {"env": dict(run.env), "readable": readable, "writable": writable}
        return ExecTask(
            folder=str(folder),
            command=(str(self.command), "-I", "-B", "-X", "utf8", "-c", _BEGIN % "guest", _PACKAGE),
            env=self._environment(),
            document=json.dumps(document),
            limits=run.limits,
            own_user=self.own_user,
        )

    def template(self, content: bytes, limits: Limits) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """The command of a process that forks the tasks of a program (``template.py``), but for its last three arguments, and its environment.

        Raises:
            NativeProgramError: it is no program.
        """
        program = NativeProgram.decode(content)
        told = {
            "data_bytes": limits.process_bytes(host_tensors=False),
            "readable": self.readable,
            "dependencies": [str(canonicalize_name(Requirement(one).name)) for one in program.dependencies],
            "modules": program.imports,
            "parent": os.getpid(),
        }
        begin = (str(self.command), "-I", "-B", "-X", "utf8", "-c", _BEGIN % "template", _PACKAGE)
        return (*begin, json.dumps(told)), self._environment()

    def _environment(self) -> dict[str, str]:
        temporary = f"/proc/self/cwd/out/{TEMPORARY}"  # another user does not reach the folder by its name
        return {
            "HOME": temporary,
            "TMPDIR": temporary,
            "LANG": "C.UTF-8",
            "JOBLIB_MULTIPROCESSING": "0",  # it would try, and warn in every task
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's, which pandas imports: a thread could not be forked
            "PATH": "",
            **{name: str(self.threads) for name in _THREADS},
        }


def chosen_python(given: Path | None = None) -> Path:
    """What runs native programs outside of a fleet: the interpreter that was asked for, the device's where this is one, else the Python that runs this."""
    return given or Path(os.environ.get(SETTING) or sys.executable)


_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "NPROC",  # XLA, of JAX
)


def _ask(command: Path, setting: str) -> Mapping[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603 - the owner's own
            [command, "-I", "-B", "-c", _ASK],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASKED_WITHIN_S,
            check=False,
        )
    except OSError as error:
        raise StartError(f"{setting}: {command} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise StartError(f"{setting}: {command} has not answered for {_ASKED_WITHIN_S:g} s") from None
    try:
        told: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise StartError(
            f"{setting}: {command} is no Python that runs: {said[-1] if said else f'it exited with {done.returncode}'}"
        ) from None
    return told


def _libraries(told: Mapping[str, Any]) -> list[str]:
    """What the interpreter imports from, with the shared libraries beside it, and this package."""
    found = [one for one in told["path"] if one.startswith("/")]
    found += [f"{prefix}/lib" for prefix in told["prefixes"] if prefix not in {"/", "/usr", ""}]
    found.append(_PACKAGE)
    return [one for one in dict.fromkeys(found) if os.path.exists(one)]  # noqa: PTH110


def _distributions(found: Mapping[str, Any]) -> dict[str, str]:
    names = sorted((canonicalize_name(str(name)), str(version)) for name, version in found.items())
    return {
        name: version
        for name, version in names[:MAX_DISTRIBUTIONS]
        if len(name) <= _MAX_CHARACTERS and len(version) <= _MAX_CHARACTERS
    }


def _is_open(path: str) -> bool:
    """Whether any user may read a file or a folder, and reach it by its name."""
    whole = Path(path).resolve()
    try:
        if any(not folder.stat().st_mode & stat.S_IXOTH for folder in whole.parents):
            return False
        mode = whole.stat().st_mode
    except OSError:
        return False
    wanted = stat.S_IROTH | (stat.S_IXOTH if whole.is_dir() else 0)
    return mode & wanted == wanted
