"""TaskResult stay on disk until they are sent."""

import asyncio
import json
from pathlib import Path

import pytest

from propeller.proplet.outbox import Outbox
from propeller.protocol.task import TaskResult
from support.net import eventually

INTERRUPTED = TaskResult(task_id="t", proplet_id="p", error="interrupted")
DONE = TaskResult(task_id="t", proplet_id="p", results="8")


class Broker:
    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.got: list[dict[str, object]] = []

    async def send(self, payload: bytes) -> None:
        await self.up.wait()
        self.got.append(json.loads(payload))


async def test_a_result_is_removed_once_it_is_sent(tmp_path: Path) -> None:
    broker = Broker()
    broker.up.set()
    box = Outbox(tmp_path / "out", broker.send, 1000)
    await box.deliver(box.add(INTERRUPTED), DONE)
    assert [one["results"] for one in broker.got] == ["8"]
    assert list((tmp_path / "out").iterdir()) == []


async def test_the_next_process_sends_what_is_left(tmp_path: Path) -> None:
    broker = Broker()
    first = Outbox(tmp_path, broker.send, 1000)
    first.add(INTERRUPTED)
    waiting = asyncio.create_task(first.deliver(first.add(INTERRUPTED), DONE))

    def result_written() -> bool:
        paths = tmp_path.iterdir()
        return not list(tmp_path.glob("*.tmp")) and any("8" in path.read_text() for path in paths)

    await eventually(result_written)
    waiting.cancel()
    (tmp_path / "t-1-1.json").write_bytes(b"garbage")
    (tmp_path / "half.tmp").write_bytes(b"{")
    second = Outbox(tmp_path, broker.send, 1000)
    new = second.add(INTERRUPTED)
    broker.up.set()
    await second.send_left_over()
    assert [(one["results"], one["error"]) for one in broker.got] == [("", "interrupted"), ("8", None)]
    assert list(tmp_path.iterdir()) == [new]
    assert oct(new.stat().st_mode)[-3:] == "600"


async def test_a_result_too_long_for_a_message_becomes_an_error(tmp_path: Path) -> None:
    broker = Broker()
    broker.up.set()
    box = Outbox(tmp_path, broker.send, 1000)
    await box.deliver(box.add(INTERRUPTED), TaskResult(task_id="t", results="x" * 2000))
    assert broker.got[0]["results"] == ""
    assert "is over the 1000" in str(broker.got[0]["error"])


async def test_a_disk_that_cannot_be_written_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    broker = Broker()
    broker.up.set()
    box = Outbox(tmp_path, broker.send, 1000)
    monkeypatch.setattr(Path, "replace", full)
    await box.deliver(box.add(INTERRUPTED), DONE)
    assert [one["results"] for one in broker.got] == ["8"]


async def test_a_result_that_waits_is_synced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("propeller.proplet.outbox.SYNC_AFTER_S", 0.01)
    monkeypatch.setattr("os.fsync", synced.append)
    broker = Broker()
    box = Outbox(tmp_path, broker.send, 1000)
    waiting = asyncio.create_task(box.deliver(box.add(INTERRUPTED), DONE))
    await eventually(lambda: len(synced) == 2)
    broker.up.set()
    await waiting
