"""What the doctor says of the newest round, from answers of a coordinator."""

from typing import Any

from propeller.doctor.advice import RemoteAdvice
from propeller.doctor.checks import Finding, Status
from propeller.doctor.fleet import RoundChecks
from propeller.doctor.target import Client, Observations, Target
from propeller.mqtt.address import BrokerAddress
from propeller.protocol.topics import Channel

CHANNEL = Channel("d", "c")


class Coordinator:
    """Answers with one round."""

    def __init__(self, **newest: Any) -> None:
        self._newest = {"round_id": "r-1", "participants": [], **newest}

    async def get_object(self, url: str, _who: Any = None, **_options: Any) -> dict[str, Any]:
        return self._newest if url.endswith("/r-1") else {"rounds": [{"round_id": "r-1"}]}


async def newest(**told: Any) -> Finding:
    target = Target(
        settings="",
        process="",
        services={"coordinator": "http://fleet.example:8086"},
        identity={},
        broker=BrokerAddress("fleet.example", 1883),
        clients=(Client("ward-3", "id-3", "", CHANNEL, "", ""),),
        admin=None,
        image="",
        folder=None,
        advice=RemoteAdvice(" --url http://fleet.example"),
        operator=Client("ann", "", "", CHANNEL, "", ""),
    )
    [found] = await RoundChecks(target, Coordinator(**told), Observations()).rounds()  # type: ignore[arg-type]
    return found


async def test_a_round_that_completed_without_somebody_says_without_whom() -> None:
    failures = [
        {"proplet_id": "id-3", "reason": "train.py, line 7: KeyError: 'x'"},
        {"proplet_id": "id-9", "reason": "not alive"},
    ]
    found = await newest(state="completed", failures=failures)
    assert found.status is Status.PASS
    assert found.detail == (
        "the newest, r-1, is completed, without ward-3: train.py, line 7: KeyError: 'x'; id-9: not alive"
    )
    assert (await newest(state="completed", failures=[])).detail == "the newest, r-1, is completed"


async def test_what_a_device_could_not_read_of_its_own_data_is_in_its_log() -> None:
    reason = "this device's own data (PROPLET_DATA) cannot be read: the log on the device names file, row and column"
    failures = [{"proplet_id": "id-3", "reason": reason}, {"proplet_id": "id-9", "reason": "not alive"}]
    found = await newest(state="failed", reason="2 of 2 participants failed", failures=failures)
    assert found.fix == "see the log of ward-3, on that machine: it names the file, row and column"


async def test_of_one_that_failed_the_fix_names_the_commands_of_that_stack() -> None:
    found = await newest(state="failed", reason="deadline: 0 of 2 updates", failures=[])
    assert found.status is Status.FAIL
    assert "deadline: 0 of 2" in found.detail
    assert found.fix.endswith("propeller logs --service coordinator --url http://fleet.example")
