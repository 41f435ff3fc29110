"""Topics built are parsed back to what went in; ids that would change a topic never make one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.topics import (
    EVERYONE,
    PROPLET_SAYS,
    ROUND_NEXT,
    ROUND_START,
    Channel,
    Kind,
    PropletTopics,
    Topic,
    parse_topic,
    update_topic,
)

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
CHANNELS = st.builds(Channel, IDS, IDS)
DIGESTS = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)

BAD_IDS = [
    "", ".", "..", "../x", "a/b", "a/", "/a", "+", "#", "a+", "a#", "$SYS", "a b", "a\n", "a\x00", "é", "a" * 129,
    "-a", "_a", "%2e%2e", "a\\b", "a:b", "a*b", "a>b",
]  # fmt: skip


NOT_SHARED = {Kind.UPDATE, Kind.REGISTRY_ANSWER}


@given(CHANNELS, st.sampled_from([kind for kind in Kind if kind not in NOT_SHARED]))
def test_shared_topics_round_trip(channel: Channel, kind: Kind) -> None:
    assert parse_topic(channel.topic(kind)) == Topic(kind, channel)


@given(CHANNELS, IDS, IDS, DIGESTS)
def test_directed_topics_round_trip(channel: Channel, proplet: str, round_id: str, digest: str) -> None:
    assert parse_topic(channel.start(proplet)) == Topic(Kind.START, channel, target=proplet)
    assert parse_topic(channel.stop(proplet)) == Topic(Kind.STOP, channel, target=proplet)
    assert parse_topic(channel.answers(proplet)) == Topic(Kind.REGISTRY_ANSWER, channel, target=proplet)
    assert parse_topic(channel.chunks(digest)) == Topic(Kind.REGISTRY_CHUNK, channel, target=digest)
    update = parse_topic(channel.update(round_id, proplet))
    assert update == Topic(Kind.UPDATE, channel, round_id=round_id, proplet_id=proplet)


@given(CHANNELS, IDS, st.sampled_from([*PROPLET_SAYS, Kind.REGISTRY_REQUEST]))
def test_what_a_proplet_says_is_on_a_topic_that_names_it(channel: Channel, proplet: str, kind: Kind) -> None:
    topic = channel.said(kind, proplet)
    assert parse_topic(topic) == Topic(kind, channel, proplet_id=proplet)
    assert PropletTopics(channel, proplet).says(kind) == topic
    assert PropletTopics(channel, proplet, compat=True).says(kind) == channel.topic(kind)


def test_where_a_proplet_listens() -> None:
    channel = Channel("d", "c")
    assert channel.said(Kind.PROPLET_ALIVE, EVERYONE) == "m/d/c/c/control/proplet/+/alive"
    assert channel.said(Kind.REGISTRY_REQUEST, EVERYONE) == "m/d/c/c/registry/proplet/+"
    own, shared = PropletTopics(channel, "p"), PropletTopics(channel, "p", compat=True)
    assert own.starts == (channel.start("p"),)
    assert own.stops == (channel.stop("p"),)
    assert shared.starts == (channel.start("p"), channel.topic(Kind.START))
    assert shared.stops == (channel.stop("p"), channel.topic(Kind.STOP))


@given(IDS, IDS)
def test_updates_outside_of_channels_round_trip(round_id: str, proplet: str) -> None:
    topic = update_topic(round_id, proplet)
    assert parse_topic(topic) == Topic(Kind.UPDATE, round_id=round_id, proplet_id=proplet)


def test_the_topics_of_absmach_propeller() -> None:
    channel = Channel("d", "c")
    assert [
        channel.topic(kind) for kind in Kind if kind not in {*NOT_SHARED, Kind.ROUND_STOP, Kind.TASK_STAGE}
    ] == [
        "m/d/c/c/control/proplet/create",
        "m/d/c/c/control/proplet/alive",
        "m/d/c/c/control/proplet/results",
        "m/d/c/c/control/proplet/metrics",
        "m/d/c/c/control/proplet/task_metrics",
        "m/d/c/c/control/manager/start",
        "m/d/c/c/control/manager/stop",
        "m/d/c/c/registry/proplet",
        "m/d/c/c/registry/server",
        "m/d/c/c/fl/rounds/start",
        "m/d/c/c/fl/rounds/next",
    ]
    assert update_topic("r-1", "p") == "fl/rounds/r-1/updates/p"


@pytest.mark.parametrize("topic", [ROUND_START, ROUND_NEXT])
def test_round_topics_also_stand_outside_of_channels(topic: str) -> None:
    assert parse_topic(topic) == Topic(Kind(topic))
    assert parse_topic(f"m/d/c/c/{topic}") == Topic(Kind(topic), Channel("d", "c"))


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_that_would_change_a_topic_makes_none(bad: str) -> None:
    channel = Channel("d", "c")
    for build in (
        lambda: check_id(bad),
        lambda: Channel(bad, "c"),
        lambda: Channel("d", bad),
        lambda: channel.start(bad),
        lambda: channel.stop(bad),
        lambda: channel.answers(bad),
        lambda: channel.chunks(bad),
        lambda: channel.update(bad, "p"),
        lambda: channel.update("r", bad),
        lambda: update_topic(bad, "p"),
    ):
        with pytest.raises(InvalidIdError):
            build()
    if bad != EVERYONE:
        with pytest.raises(InvalidIdError):
            channel.said(Kind.PROPLET_ALIVE, bad)
    for topic in (
        f"m/{bad}/c/c/control/proplet/alive",
        f"m/d/c/{bad}/control/proplet/alive",
        f"m/d/c/c/control/manager/start/{bad}",
        f"m/d/c/c/control/proplet/{bad}/alive",
        f"m/d/c/c/registry/server/{bad}",
        f"m/d/c/c/registry/answers/{bad}",
        f"m/d/c/c/registry/proplet/{bad}",
        f"fl/rounds/{bad}/updates/p",
        f"fl/rounds/r/updates/{bad}",
    ):
        assert parse_topic(topic) is None


@pytest.mark.parametrize("digest", ["sha256:abc", "sha256:" + "A" * 64, "sha512:" + "a" * 64, "a" * 64])
def test_chunks_have_a_topic_by_a_whole_digest_only(digest: str) -> None:
    with pytest.raises(InvalidIdError):
        Channel("d", "c").chunks(digest)


@pytest.mark.parametrize(
    "topic",
    ["", "/", "m", "m/d/c/c", "m/d/c/c/", "m/d/x/c/control/proplet/alive", "control/proplet/alive",
     "m/d/c/c/fl/rounds/updates", "m/d/c/c/control/manager/start/", "m/d/c/c/control/manager/start/a/b",
     "control/manager/start/p", "registry/server/p", "m/d/c/c/control/proplet/alive/p", "m/d/c/c/control/proplet/p/start", "control/proplet/p/alive",
     "registry/proplet/p", "m/d/c/c/registry/answers", "m/d/c/c/registry/server/p"],
)  # fmt: skip
def test_other_topics_are_none_of_ours(topic: str) -> None:
    assert parse_topic(topic) is None


@given(st.text())
def test_any_text_parses_or_is_none(topic: str) -> None:
    parsed = parse_topic(topic)
    assert parsed is None or isinstance(parsed, Topic)
