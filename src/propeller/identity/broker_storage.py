"""How much the broker keeps: limits of the streams in which nats-server has its MQTT messages, which it sets none of itself.

Retained messages are not kept at all: nothing of Propeller uses them, and each stays in the broker's memory for good.
"""

from collections import Counter

from nats.aio.client import Client

from propeller.identity.broker_api import jetstream, max_storage

RETAINED, WAITING, HALF_SENT = "$MQTT_rmsgs", "$MQTT_msgs", "$MQTT_qos2in"
"""Streams of retained messages, of those that wait for sessions, and of those of QoS 2 that were not released yet."""

MESSAGES_PER_TOPIC = 10_000
"""That wait; the oldest make room, so that who publishes too much loses its own."""

HALF_SENT_BYTES = 1024**3
"""That may be half sent; no more is taken then."""

_NANOSECONDS = 1_000_000_000
_SHORTEST_AGE_S = 600.0
_HALF_SENT_SUBJECT = "$MQTT.qos2.in."


async def limit_storage(link: Client, *, age_s: float, max_bytes: int) -> int:
    """Set the limits where they are not set yet.

    A broker refuses a limit that its disk has no room for, and then has none: on a small disk it is half of what there is.

    Args:
        link: the connection to the broker.
        age_s: how long a message waits, in seconds: as long as a session does.
        max_bytes: of the messages that wait; the oldest make room.

    Returns:
        The bytes of the messages that may wait.

    Raises:
        LookupError: there are no such streams yet, as nobody has ever connected.
        NatsError: the broker does not answer, or refuses.
    """
    room = await max_storage(link)
    half_sent_bytes = HALF_SENT_BYTES
    if room is not None:
        max_bytes, half_sent_bytes = min(max_bytes, room // 2), min(half_sent_bytes, room // 8)
    age = int(max(age_s, _SHORTEST_AGE_S) * _NANOSECONDS)
    wanted: dict[str, dict[str, int]] = {
        RETAINED: {"max_msg_size": 1},
        WAITING: {"max_age": age, "max_bytes": max_bytes, "max_msgs_per_subject": MESSAGES_PER_TOPIC},
        HALF_SENT: {"max_age": age, "max_bytes": half_sent_bytes},
    }
    for stream, limits in wanted.items():
        known = (await jetstream(link, f"STREAM.INFO.{stream}"))["config"]
        if any(known.get(name) != value for name, value in limits.items()):
            await jetstream(link, f"STREAM.UPDATE.{stream}", **{**known, **limits})
    return max_bytes


async def half_sent(link: Client, at_least: int) -> Counter[str]:
    """How many messages of QoS 2 each MQTT client id has sent and not released; nothing if all have fewer than ``at_least``.

    nats-server counts these nowhere else.

    Raises:
        LookupError: there is no such stream yet.
        NatsError: the broker does not answer.
    """
    state = (await jetstream(link, f"STREAM.INFO.{HALF_SENT}"))["state"]
    if state["messages"] < at_least:
        return Counter()
    answer = await jetstream(link, f"STREAM.INFO.{HALF_SENT}", subjects_filter=">")
    subjects = answer["state"].get("subjects") or {}
    return Counter(subject.removeprefix(_HALF_SENT_SUBJECT).rpartition(".")[0] for subject in subjects)


async def purge_half_sent(link: Client, mqtt_id: str) -> None:
    """Forget what an MQTT client id has sent and not released, which the end of its session leaves.

    Raises:
        NatsError: the broker does not answer.
    """
    if not any(character in mqtt_id for character in ".*> \t"):  # else its age ends it
        await jetstream(link, f"STREAM.PURGE.{HALF_SENT}", filter=f"{_HALF_SENT_SUBJECT}{mqtt_id}.>")
