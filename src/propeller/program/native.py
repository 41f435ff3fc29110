"""A script run as it is, in plain Python, on the files of a task: for a debugger, and for ``propeller try train.py``.

What the sandbox would not give it is refused here too: modules that are not there, the network, other processes and threads.
"""

import builtins
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from propeller.native_program import NativeProgramError, ScriptMetadata
from propeller.program import command
from propeller.tensors import session

AVAILABLE_MODULES = (
    "they have Python's standard library, propeller.program (arrays: propeller.program.tensors), "
    "and modules of your own in files beside the script; packages that devices have are for native programs "
    "(docs/programs.md#native-programs)"
)

MISSING_STDLIB = {
    "antigravity", "bz2", "ctypes", "curses", "doctest", "ensurepip", "fcntl", "grp", "idlelib", "lib2to3", "lzma", "mmap", "msvcrt", "nis", "nt",
    "ossaudiodev", "pdb", "pty", "pwd", "pydoc", "pydoc_data", "readline", "resource", "spwd", "ssl", "syslog", "termios", "this", "tkinter",
    "tty", "turtle", "turtledemo", "venv", "winreg", "winsound",
}  # fmt: skip
"""Modules of the standard library that programs do not have."""

_REFUSED = {
    "socket.connect": "there is no network",
    "socket.bind": "there is no network",
    "socket.getaddrinfo": "there is no network",
    "socket.gethostbyname": "there is no network",
    "subprocess.Popen": "there are no other processes",
    "os.fork": "there are no other processes",
    "os.posix_spawn": "there are no other processes",
    "os.system": "there are no other processes",
    "Thread.start": "there are no threads",
}
"""Events of ``sys.addaudithook`` for what no program can do; before Python 3.12 there is none for threads."""


def is_provided(module: str) -> bool:
    """Whether programs have a module that is not their own, by the first part of its name."""
    return module in sys.stdlib_module_names | {"propeller"} and module not in MISSING_STDLIB


def run_script(script: Path, root: Path, told: tuple[float, str] | None = None) -> int:
    """Load a script and do the task below ``root`` with what it registers.

    Args:
        script: the script.
        root: has the task's files.
        told: after how many seconds to say that it runs, and what would end it.

    Returns:
        The exit code, as ``command.run`` does.
    """
    return command.run(root) if load_script(script, root, told) else 1


def load_script(script: Path, root: Path, told: tuple[float, str] | None = None) -> bool:
    """Load a script, as ``run_script``; whether it went well: what went wrong is on standard error."""
    session.use(session.LocalMachine(root))
    sys.path.append(
        str(script.parent)
    )  # at the end: the standard library's modules come first, as in a built program
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise ValueError(f"{script} is not a Python file")
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)
    if not _is_native(script):
        refuse_what_the_sandbox_lacks(script.parent.resolve())
    if told is not None:
        tell_if_it_takes_long(script, *told)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the script does wrong
        command.explain(error)
        return False
    return True


def _is_native(script: Path) -> bool:
    """Whether a script is a native program: devices' own Python runs it, so that it has here what this one has."""
    try:
        return ScriptMetadata.of(script.read_text(encoding="utf-8-sig")).native
    except (OSError, ValueError, NativeProgramError):  # whoever builds it says so
        return False


def tell_if_it_takes_long(script: Path, after_s: float, ends: str) -> None:
    """Say on standard error, once it has run so long, where the script is and what would end it; not in a debugger.

    Args:
        script: the script that this process runs.
        after_s: seconds.
        ends: what would end it, in words.
    """
    folder, runs = script.parent.resolve(), threading.main_thread().ident

    def tell() -> None:
        if "pdb" in sys.modules or sys.gettrace() is not None:
            return
        frame = sys._current_frames().get(runs or 0)  # noqa: SLF001 - the only way to another thread's
        while frame is not None and Path(frame.f_code.co_filename).resolve().parent != folder:
            frame = frame.f_back
        at = (
            ""
            if frame is None
            else f", and is in line {frame.f_lineno} of {Path(frame.f_code.co_filename).name} ({frame.f_code.co_name})"
        )
        print(f"{script.name} has run for {after_s:g} s{at}. {ends}", file=sys.stderr, flush=True)  # noqa: T201

    timer = threading.Timer(after_s, tell)
    timer.daemon = True
    timer.start()


def refuse_what_the_sandbox_lacks(folder: Path) -> None:
    """From here on modules of a folder have in this process no more than in the sandbox; a debugger has all."""
    original: Callable[..., Any] = builtins.__import__
    # ``breakpoint()`` imports them for whoever calls it.
    debuggers = {"pdb", os.environ.get("PYTHONBREAKPOINT", "").partition(".")[0]}

    def is_own(caller: dict[str, Any] | None) -> bool:
        file = (caller or {}).get("__file__")
        return isinstance(file, str) and Path(file).resolve().parent == folder

    def checked_import(name: str, /, caller: Any = None, *rest: Any, **named: Any) -> Any:
        first, level = name.partition(".")[0], named.get("level", rest[2] if len(rest) > 2 else 0)
        is_absent = not is_provided(first) and not (folder / f"{first}.py").is_file()
        if level == 0 and is_absent and first not in debuggers and is_own(named.get("globals", caller)):
            raise ModuleNotFoundError(
                f"No module named {first!r} for programs: {AVAILABLE_MODULES}", name=first
            )
        return original(name, *(() if caller is None else (caller,)), *rest, **named)

    def refuse(event: str, _arguments: Any) -> None:
        reason = _REFUSED.get(event)
        if reason is None:
            return
        frame = sys._getframe(1)  # noqa: SLF001 - audit hooks are not told who asks
        while frame is not None:
            if is_own(frame.f_globals):
                raise PermissionError(f"{event}: {reason} for programs, in the sandbox neither")
            frame = frame.f_back  # type: ignore[assignment]

    start_thread = threading.Thread.start

    def checked_start(thread: threading.Thread) -> None:
        refuse("Thread.start", ())
        start_thread(thread)

    hooked: Any = builtins
    hooked.__import__ = checked_import
    hooked = threading.Thread
    hooked.start = checked_start
    sys.addaudithook(refuse)


if __name__ == "__main__":
    told = (float(sys.argv[3]), sys.argv[4]) if len(sys.argv) > 3 else None
    try:
        sys.exit(run_script(Path(sys.argv[1]), Path(sys.argv[2]), told))
    except KeyboardInterrupt:
        sys.exit(130)
