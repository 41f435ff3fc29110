"""The folder of open requests."""

import os
import time
from pathlib import Path

from propeller.proxy.service import MAX_REQUEST_AGE_S, OpenRequests


def test_open_requests_survive_and_old_ones_do_not(tmp_path: Path) -> None:
    requests = OpenRequests(tmp_path)
    first, old, second = requests.add(b"1"), requests.add(b"old"), requests.add(b"2")
    done = requests.add(b"done")
    requests.remove(done)
    past = time.time() - MAX_REQUEST_AGE_S - 1
    os.utime(old, (past, past))
    (tmp_path / "torn.part").write_bytes(b"{")
    assert OpenRequests(tmp_path).left_over() == [(first, b"1"), (second, b"2")]
    assert sorted(tmp_path.iterdir()) == [first, second]
