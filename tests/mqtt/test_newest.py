"""Where only the newest message of a topic matters, one sender's flood holds up nobody else."""

import asyncio
import uuid

import aiomqtt

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from support.net import eventually


async def test_only_the_newest_of_each_topic_waits(broker_port: int) -> None:
    prefix, heard = uuid.uuid4().hex, []
    seen: list[bytes] = []

    async def hear(topic: str, payload: bytes) -> None:
        heard.append((topic.rpartition("/")[2], payload))

    async def see(_topic: str, payload: bytes) -> None:
        seen.append(payload)

    session = Session(BrokerAddress("127.0.0.1", broker_port), Credentials(uuid.uuid4().hex), clean=True)
    async with session.running():
        await session.subscribe(f"{prefix}/+/alive", hear, 0, newest=True)
        await session.subscribe(f"{prefix}/all", see, 0)
        assert await session.wait_connected(10)
        connection = session._connection  # noqa: SLF001
        assert connection is not None
        take = connection._on_message  # noqa: SLF001
        # As they come from the socket, before anything takes one of them.
        for number in range(1000):
            for name in ("a", "b"):
                topic = f"{prefix}/{name}/alive"
                take(None, None, _message(topic, f"{name}{number}".encode()))
            take(None, None, _message(f"{prefix}/all", str(number).encode()))
        await eventually(lambda: len(seen) == 1000)
        assert [payload for _, payload in heard] == [b"a999", b"b999"]
        async with aiomqtt.Client("127.0.0.1", broker_port) as client:
            await client.publish(f"{prefix}/a/alive", b"later")
        await eventually(lambda: len(heard) == 3)
        await asyncio.sleep(0)
        assert heard[-1][1] == b"later"


class _message:  # noqa: N801 - what paho gives, as far as it is read
    qos, mid, retain, properties = 0, 0, False, None

    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic, self.payload = topic, payload
