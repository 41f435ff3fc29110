"""The template process of a native program: it imports what the program requires once, and forks a process for each of its tasks.

Runs in the device's interpreter. It is confined before it imports anything, never reads the program, and starts no task unless
it still has one thread and no descriptor more: what a library does at its import must be what a fork keeps whole. It works as the template of Wasm
programs does (``wasm/template.py``), by the same messages; each of its processes confines itself as a fresh one would (``guest.py``).
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from propeller.native import guest
from propeller.process import parent_death
from propeller.wasm import confinement, task_process
from propeller.wasm.messages import (
    ExecTask,
    MessageError,
    TemplateReady,
    decode_task,
    encode,
)
from propeller.wasm.task_process import use_descriptors
from propeller.wasm.task_users import NEEDED, TaskUsers
from propeller.wasm.template import TaskWork, Template

_OWN = ("propeller.tensors.numpy_machine", "propeller.program.library_arrays")
"""What every native program is run with; they import NumPy."""

_INTERRUPTED, _NOT_FLUSHED = 130, 120
"""Exit codes of an interpreter: of a ``KeyboardInterrupt``, and where the last output cannot be written."""

_ENDS_WITHIN_S = 0.01
"""A process that was killed, mostly."""


def _do(task_file: str, pipes: list[int], parent: int, nice: int, users: TaskUsers) -> NoReturn:
    """Do what a task file says; never returns, and nothing of what called this goes on in a task's process."""
    code = guest.CANNOT
    given = dict(os.environ)  # the constants of every task, and what libraries set at their import
    try:
        user = confinement.isolate(parent, nice, users)
        use_descriptors([None, *pipes[:2]], {})  # there is no report: its exit status says how it ended
        task = _read_task(task_file)
        user = task_process.enter_native(task, user)
        document = json.loads(task.document)
        guest.confine(document["readable"], document["writable"], user)
        os.environ.update({**given, **document["env"]})
        code = _run()
    except BaseException as error:  # noqa: BLE001 - the process ends here, and says why
        with contextlib.suppress(Exception):
            sys.stderr.write(f"sandbox: {error}\n")
    finally:
        _end(code)


def _read_task(task_file: str) -> ExecTask:
    with open(task_file, "rb") as file:  # noqa: PTH123
        task = decode_task(file.read())
    if not isinstance(task, ExecTask):
        raise MessageError("no task of a native program")
    return task


def _run() -> int:
    """Load the program and do its task, as in an interpreter that has just started."""
    _draw_anew()
    sys.argv[:] = ["program"]
    try:
        return guest.run()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - what ends an interpreter, too
        with contextlib.suppress(Exception):  # it may have closed what this is written to
            traceback.print_exc()
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _draw_anew() -> None:
    """Have generators of random numbers begin anew that tasks would share; Python's own does so by itself.

    PyTorch draws its seed once, at its import: noise for privacy would be the same in each task, and cancel out.
    """
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


def _end(code: int) -> NoReturn:
    """End as an interpreter does: its threads first, then what is to be done at its exit."""
    try:
        end: Any = threading
        end._shutdown()  # noqa: SLF001 - what the interpreter calls
        at_exit: Any = atexit
        at_exit._run_exitfuncs()  # noqa: SLF001
    except BaseException:  # noqa: BLE001
        code = code or 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:  # noqa: BLE001
        code = _NOT_FLUSHED
    finally:
        os._exit(code & 0xFF)


def _descriptors() -> set[str]:
    """Those that are open, with what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # that of the list itself
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")  # noqa: PTH115
    return found


def _packages(dependencies: list[str]) -> set[str]:
    """The names by which distributions are imported."""
    found = set()
    for one in dependencies:
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(one)
            named = (distribution.read_text("top_level.txt") or "").split()
            files = distribution.files or []
            found |= set(named) or {
                file.parts[0].partition(".")[0] for file in files if file.suffix in {".py", ".so"}
            }
    return found


def _load(dependencies: list[str], modules: list[str]) -> str:
    """Import what a program requires, by names that it says and that are theirs; why no process can be forked then, if so."""
    before = _descriptors()
    packages = _packages(dependencies)
    wanted = [one for one in modules if one.partition(".")[0] in packages]
    try:
        with confinement.without_capabilities():
            for name in (*_OWN, *wanted):
                importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - a library's, which a fresh process meets again
        return f"{type(error).__name__}: {error!s:.200}"
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads != 1:
        return f"{threads} threads after the import of {', '.join(wanted) or 'NumPy'}"
    if more := _descriptors() - before:
        return f"descriptors that stay open: {', '.join(sorted(more)):.200}"
    return ""


def _end_processes() -> bool:
    """End the processes that libraries have left at their import, which no task may have; whether there were any that still ran.

    Those whose parents have ended are among them, as this process takes over what its own leave.
    """
    found = False
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            found = True
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(_ENDS_WITHIN_S)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
            # Behind the command, which may have spaces and brackets: the state, then the parent.
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


def main() -> None:
    """Serve the socket at descriptor 0; the arguments are this package's folder, what to load and how, and those of the template of Wasm programs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told, (nice, folder, processors) = json.loads(sys.argv[2]), sys.argv[3:6]
    if not parent_death.die_with_parent(
        told["parent"]
    ):  # an import may never end, and until then nothing is read
        return
    confinement.use_processors(int(processors))
    users = TaskUsers.find(folder)
    confinement.drop_bounding_set()
    confinement.keep_capabilities(NEEDED.values() if users.count else ())
    parent_death.adopt_orphans()
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):  # what libraries say at their import is nobody's
        os.dup2(nothing, target)
    os.close(nothing)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for kind, value in ((resource.RLIMIT_CORE, 1), (resource.RLIMIT_DATA, told["data_bytes"])):
        resource.setrlimit(kind, (value, value))
    try:
        readable = [one for one in told["readable"] if Path(one).exists()]
        confinement.confine_template([*readable, "/proc"], [folder, os.devnull])
        unusable = _load(told["dependencies"], told["modules"])
        if _end_processes():
            unusable = unusable or "processes that were started at the import"
    except OSError as error:
        unusable = str(error)
    if unusable:
        control.sendall(encode(TemplateReady((), unusable=unusable)))
        return
    gc.collect()
    gc.freeze()  # a collection in a child would copy every shared page
    Template(control, int(nice), users, TaskWork(_do)).serve()
