"""What identity asks the broker, and the clocks of both."""

from pathlib import Path

import pytest

from propeller.identity.broker_api import connections, parse_time, seconds_ahead
from support.identity import Site, hash_cheaply


@pytest.mark.parametrize(("now", "ahead"), [(10.0, 0.0), (10.5, 0.0), (11.0, 0.0), (12.0, 1.0), (8.0, -2.0)])
def test_a_clock_is_ahead_by_what_the_time_between_cannot_explain(now: float, ahead: float) -> None:
    assert seconds_ahead(now, asked=10.0, answered=11.0) == ahead


def test_the_servers_times_have_nanoseconds() -> None:
    assert parse_time("2026-11-24T09:14:58.199054953Z") == pytest.approx(1795511698.199054, abs=1e-5)


async def test_a_connection_that_is_lost_while_connections_are_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_cheaply(monkeypatch)
    site = Site.at(tmp_path)
    async with site.running() as (identity, made):
        proplet = made.clients["proplet-1"]
        async with site.client(proplet.id, proplet.key):
            link = identity.link._nats  # noqa: SLF001
            assert link is not None
            found = connections(link)
            assert (await anext(found)).server
            await link.close()
            await found.aclose()
