"""Provisioning in the same process, and the link to a broker that is not there or not ours."""

from pathlib import Path

import pytest

from propeller.identity.provision import provision
from propeller.identity.service import open_identity
from propeller.identity.settings import Settings
from propeller.mqtt.broker import Broker
from propeller.web.errors import ConflictError
from support.identity import PASSWORD, Site
from support.net import eventually


async def test_the_same_again_with_known_keys(tmp_path: Path) -> None:
    async with open_identity(Site.at(tmp_path).identity) as identity:
        made = await provision(identity)
        assert set(made.clients) == {
            "manager",
            "fl-coordinator",
            "proxy",
            "proplet-1",
            "proplet-2",
            "proplet-3",
        }
        assert await provision(identity, known=made.clients) == made
        more = await provision(identity, proplets=4, known=made.clients)
        assert more.clients["proplet-4"].id not in {client.id for client in made.clients.values()}
        with pytest.raises(ConflictError, match="its key is not shown again"):
            await provision(identity)


async def test_a_database_that_was_lost_gets_the_known_keys(tmp_path: Path) -> None:
    async with open_identity(Site.at(tmp_path / "old").identity) as identity:
        made = await provision(identity)
    async with open_identity(Site.at(tmp_path / "new").identity) as identity:
        again = await provision(identity, known=made.clients)
        assert again.clients == made.clients
        for client in made.clients.values():
            assert identity.directory.authenticate(client.id, client.key)


async def test_a_deleted_client_gets_a_new_id(tmp_path: Path) -> None:
    async with open_identity(Site.at(tmp_path).identity) as identity:
        made = await provision(identity)
        await identity.clients.delete(made.domain_id, made.clients["proxy"].id)
        again = await provision(identity, known=made.clients)
        assert again.clients["proxy"].id != made.clients["proxy"].id
        assert "key" not in repr(again.clients["proxy"])


async def test_identity_waits_for_a_broker_and_refused_by_a_foreign_one_goes_on(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    other = Settings.load(
        database=str(tmp_path / "other.db"),
        admin_password=PASSWORD,
        broker_secret="another secret of the tests",
        broker_url=site.identity.broker_url,
    )
    async with open_identity(site.identity) as identity, open_identity(other) as foreign:
        assert not identity.link.connected
        for _ in range(2):  # also when the broker goes and comes back
            async with Broker(site.broker):
                await eventually(lambda: identity.link.connected)
                assert not foreign.link.connected
            await eventually(lambda: not identity.link.connected)
