"""What identity knows of clients that are refused, for those that may ask it."""

from collections.abc import Sequence

from propeller.doctor.questions import TIMEOUT_S
from propeller.doctor.target import Client, Target
from propeller.process.http import ServiceError
from propeller.stack.identity_api import IdentityApi
from propeller.stack.services import IDENTITY_LISTENERS


class Accounts:
    """Asks as identity's first user, where the settings have its password."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def why_refused(self, clients: Sequence[Client]) -> list[tuple[str, str]]:
        """For each client why the broker does not let it in, and what to do."""
        admin, urls = self._target.admin, self._target.identity
        if admin is None:
            return [self._unknown(client) for client in clients]
        api = IdentityApi(*(urls[name] for name in IDENTITY_LISTENERS), timeout=TIMEOUT_S)
        try:
            await api.login(*admin)  # once: identity locks out who fails too often
            return [await self._ask(api, client) for client in clients]
        except ServiceError:
            return [self._unknown(client) for client in clients]
        finally:
            await api.aclose()

    async def _ask(self, api: IdentityApi, client: Client) -> tuple[str, str]:
        domain, urls = client.place.channel.domain_id, self._target.identity
        new_key = self._target.advice.new_key(client.name)
        account = await api.client_by_id(domain, client.id)
        if account is None:
            return "identity has no such client in that domain", new_key
        if account.get("status") == "disabled":
            enable = f"POST {urls['clients']}/{domain}/clients/{client.id}/enable"
            return (
                "it is disabled",
                f"{enable}, with an admin's token (POST {urls['users']}/users/tokens/issue)",
            )
        return "its key is wrong: it was revoked, or another was made since", new_key

    def _unknown(self, client: Client) -> tuple[str, str]:
        new_key = self._target.advice.new_key(client.name)
        return "it is unknown or disabled, or its key is wrong or revoked", new_key
