"""A script run as it is, in plain Python, on the files of a task: for a debugger, and for ``propeller try train.py``."""

import importlib.util
import sys
from pathlib import Path

from propeller.program import command
from propeller.tensors import session


def run_script(script: Path, root: Path) -> int:
    """Load a script and do the task below ``root`` with what it registers.

    Returns:
        The exit code, as ``command.run`` does.
    """
    session.use(session.LocalMachine(root))
    sys.path.append(
        str(script.parent)
    )  # at the end: the standard library's modules come first, as in a built program
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise ValueError(f"{script} is not a Python file")
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the script does wrong
        command.explain(error)
        return 1
    return command.run(root)


if __name__ == "__main__":
    try:
        sys.exit(run_script(Path(sys.argv[1]), Path(sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit(130)
