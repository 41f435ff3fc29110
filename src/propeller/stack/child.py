"""``python -m propeller.stack.child SERVICE LOG_FILE``: one service in an interpreter of its own."""

import sys
from pathlib import Path

from propeller.stack.services import serve

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], log_file=Path(sys.argv[2])))
