"""The interpreter that runs the native programs of a simulation's clients: a device's, or the one that runs the simulation."""

from collections.abc import Iterable
from pathlib import Path

from propeller.errors import StartError
from propeller.fl.requirements import lacking
from propeller.native.interpreter import Interpreter, chosen_python
from propeller.native_program import NativeProgram, NativeProgramError
from propeller.protocol.requirements import Requirements
from propeller.wasm.confinement import available_protections
from propeller.wasm.messages import CONFINING
from propeller.wasm.program_run import ProgramError

FIELD = "native_python"

_THREADS = 1
"""That each client computes with: those of the others are beside it, and its numbers are the same however many there are."""


def find_interpreter(python: Path, keep_out: Iterable[Path] = ()) -> Interpreter:
    """What runs clients, as on a device; ``keep_out`` are folders that none may read.

    Raises:
        StartError: it cannot run native programs; the text says why.
    """
    return Interpreter.find(python, threads=_THREADS, keep_out=keep_out, setting=FIELD)


def check_native(content: bytes, called: str, python: Path | None, scratch: Path) -> Path:
    """See that a native program can run here, by the rules of a device: confined, and with all that it requires.

    Args:
        content: the program.
        called: what an error calls it.
        python: the interpreter that was asked for, if one was.
        scratch: the simulation's folder for temporary files.

    Returns:
        The interpreter's file.

    Raises:
        StartError: this kernel does not confine it, or the interpreter is none.
        ProgramError: it is no program, or the interpreter lacks something.
    """
    if missing := [name for name in CONFINING if name not in available_protections()]:
        raise StartError(
            f"program: {called} is a native program, which this kernel does not confine: it lacks {', '.join(missing)}; simulate it "
            "on a machine with Linux 5.13 or newer"
        )
    try:
        program = NativeProgram.decode(content)
    except NativeProgramError as error:
        raise ProgramError(f"program: {called}: {error}") from None
    command = chosen_python(python)
    found = find_interpreter(command, keep_out=[scratch])
    required = Requirements(python=program.requires_python, dependencies=list(program.dependencies))
    if lacks := lacking(required, found.python):
        raise ProgramError(
            f"program: {called}: {command} cannot run it: {lacks}. Install that there, or name another interpreter "
            f"({FIELD}, --native-python or PROPLET_NATIVE_PYTHON)"
        )
    return found.command
