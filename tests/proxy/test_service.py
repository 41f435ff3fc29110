"""The folder of open requests, and what becomes of those that cannot be kept in it."""

import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from propeller.protocol.programs import ProgramRequest
from propeller.protocol.topics import Channel, Kind
from propeller.proxy.metrics import ProxyMetrics
from propeller.proxy.requesters import MAX_OPEN, RequestLimits
from propeller.proxy.service import MAX_REQUEST_AGE_S, OpenRequests, ProxyService


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


async def test_requests_that_a_full_disk_does_not_take_do_not_count_for_ever(tmp_path: Path) -> None:
    requests = OpenRequests(tmp_path)
    nothing: Any = Mock()
    service = ProxyService(
        Channel("d", "c"), nothing, nothing, nothing, requests, ProxyMetrics(), RequestLimits(requests=1000)
    )
    topic = Channel("d", "c").said(Kind.REGISTRY_REQUEST, "p-1")
    payload = ProgramRequest(app_name="localhost:5000/program:1").encode()
    tmp_path.rmdir()
    for _ in range(MAX_OPEN + 1):
        with pytest.raises(FileNotFoundError):
            await service.handle_request(topic, payload)
