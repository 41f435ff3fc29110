"""Memory of an idle proplet and of its sandbox's template process.

Run it as ``python benchmarks/proplet_rss.py``. It starts a broker and one proplet, waits until the proplet has
registered, and prints the resident memory (RSS) of both of its processes and their proportional share (PSS, Linux: a
page that processes share counts for each in part). The bound is 55 MB for the proplet.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.nats import open_broker  # noqa: E402 - the test support is not installed

BOUND_MB = 55.0

_PROPLET = """
import sys
from propeller.process import logs, run
from propeller.proplet.main import main
from propeller.proplet.settings import PropletSettings
logs.configure("proplet")
settings = PropletSettings.load(
    domain_id="d", channel_id="c", client_id="p", client_key="k", mqtt_address=sys.argv[1], state=sys.argv[2]
)
sys.exit(run.run(lambda stop: main(settings, stop)))
"""


def main() -> int:
    """Print the figures; 1 if the proplet is over its bound."""
    with tempfile.TemporaryDirectory() as folder, open_broker(Path(folder) / "broker") as port:
        log = Path(folder) / "log"
        arguments = [sys.executable, "-c", _PROPLET, f"tcp://127.0.0.1:{port}", f"{folder}/state"]
        with log.open("wb") as stderr, subprocess.Popen(arguments, stderr=stderr) as child:
            try:
                while b"connected to MQTT broker" not in log.read_bytes():
                    time.sleep(0.05)
                time.sleep(2)  # what only starting needs is given back
                proplet = psutil.Process(child.pid)
                rss = report("proplet", proplet)
                for template in proplet.children():
                    report("sandbox template", template)
            finally:
                child.terminate()
    print(f"bound: {BOUND_MB:.0f} MB, {'held' if rss <= BOUND_MB else 'EXCEEDED'}")
    return int(rss > BOUND_MB)


def report(name: str, process: psutil.Process) -> float:
    """Print a process's memory; its RSS in MB."""
    memory = process.memory_full_info()
    rss = memory.rss / 1e6
    share = f", PSS {memory.pss / 1e6:.1f} MB" if hasattr(memory, "pss") else ""
    print(f"{name}: RSS {rss:.1f} MB{share}")
    return rss


if __name__ == "__main__":
    sys.exit(main())
