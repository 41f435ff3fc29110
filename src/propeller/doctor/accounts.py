"""What identity knows of a client that is refused, for those that may ask it."""

from propeller.doctor.questions import TIMEOUT_S
from propeller.doctor.target import LISTENERS, Client, Target
from propeller.process.http import ServiceError
from propeller.stack.identity_api import IdentityApi


class Accounts:
    """Asks as identity's first user, where the settings have its password."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def why_refused(self, client: Client) -> tuple[str, str]:
        """Why the broker does not let a client in, and what to do."""
        new_key = self._target.advice.new_key(client.name)
        unknown = "it is unknown or disabled, or its key is wrong or revoked", new_key
        if self._target.admin is None:
            return unknown
        domain, urls = client.place.channel.domain_id, self._target.identity
        api = IdentityApi(*(urls[name] for name in LISTENERS), timeout=TIMEOUT_S)
        try:
            await api.login(*self._target.admin)
            account = await api.client_by_id(domain, client.id)
        except ServiceError:
            return unknown
        finally:
            await api.aclose()
        if account is None:
            return "identity has no such client in that domain", new_key
        if account.get("status") == "disabled":
            enable = f"POST {urls['clients']}/{domain}/clients/{client.id}/enable"
            return (
                "it is disabled",
                f"{enable}, with an admin's token (POST {urls['users']}/users/tokens/issue)",
            )
        return "its key is wrong: it was revoked, or another was made since", new_key
