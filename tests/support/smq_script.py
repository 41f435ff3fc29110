"""The requests of absmach/propeller's provisioning script for its FL demo, in the same order and form."""

from dataclasses import dataclass
from typing import Any

import httpx

from propeller.stack.env_file import env_values

CLIENTS = ("manager", "proplet-1", "proplet-2", "proplet-3", "fl-coordinator", "proxy")
TRIES = 30


class ScriptError(Exception):
    """The script would exit with code 1."""


@dataclass
class SmqScript:
    """The script with the addresses of the four APIs.

    Attributes:
        warnings: what it would only warn of.
        answers: the answer to each client's creation, or its entry in the list, by name.
    """

    users: str
    domains: str
    channels: str
    clients: str
    username: str = "admin"
    password: str = "12345678"

    def __post_init__(self) -> None:
        self.warnings: list[str] = []
        self.answers: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, str]:
        """Provision; gives the variables that the script writes to the .env file, without clients that have no id or secret."""
        with httpx.Client(timeout=10, trust_env=False) as http:
            self._http = http
            self._wait()
            self._token = self._login()
            domain = self._domain()
            for name in CLIENTS:
                client = self._client(domain, name)
                if client is None:
                    self.warnings.append(f"client {name}")
                else:
                    self.answers[name] = client
            if not self.answers:
                raise ScriptError("no client")
            channel = self._channel(domain)
            self._connect(domain, channel)
        pairs = {
            name: {"id": client["id"], "key": client.get("credentials", {}).get("secret")}
            for name, client in self.answers.items()
        }
        return env_values(
            domain, channel, {name: pair for name, pair in pairs.items() if pair["id"] and pair["key"]}
        )

    def _wait(self) -> None:
        for base in (self.users, self.domains, self.clients, self.channels):
            for _ in range(TRIES):
                if self._http.get(f"{base}/health", timeout=2).status_code in {200, 404}:
                    break
            else:
                raise ScriptError(f"{base} does not answer")

    def _login(self) -> str:
        body = {"username": self.username, "password": self.password}
        answer = self._http.post(
            f"{self.users}/users/tokens/issue", json=body, headers={"Content-Type": "application/json"}
        )
        if not answer.is_success:
            raise ScriptError(f"login: {answer.text}")
        token = answer.json().get("access_token") or answer.json().get("accessToken")
        if not token:
            raise ScriptError("login: no token")
        return str(token)

    def _domain(self) -> str:
        found = self._find_domain()
        if found is not None:
            return found
        answer = self._post(f"{self.domains}/domains", {"name": "fl-demo", "route": "fl-demo"})
        if answer.status_code == 201:
            return str(answer.json()["id"])
        if (answer.status_code == 400 and "route" in answer.text) or answer.status_code == 409:
            found = self._find_domain()
        if found is None:
            raise ScriptError(f"domain: {answer.status_code} {answer.text}")
        return found

    def _find_domain(self) -> str | None:
        answer = self._get(f"{self.domains}/domains")
        if not answer.is_success:
            return None
        for domain in answer.json().get("domains", []):
            if domain.get("route") == "fl-demo" or domain.get("name") == "fl-demo":
                return str(domain["id"])
        return None

    def _client(self, domain: str, name: str) -> dict[str, Any] | None:
        url = f"{self.clients}/{domain}/clients"
        answer = self._post(url, {"name": name, "tags": ["propeller", "fl-demo"], "status": "enabled"})
        return self._created_or_listed(answer, url, name, "clients")

    def _channel(self, domain: str) -> str:
        url = f"{self.channels}/{domain}/channels"
        answer = self._post(url, {"name": "fl", "status": "enabled"})
        channel = self._created_or_listed(answer, url, "fl", "channels")
        if channel is None:
            raise ScriptError(f"channel: {answer.status_code} {answer.text}")
        return str(channel["id"])

    def _created_or_listed(
        self, answer: httpx.Response, url: str, name: str, key: str
    ) -> dict[str, Any] | None:
        if answer.status_code == 201:
            created: dict[str, Any] = answer.json()
            return created
        if answer.status_code != 409:
            return None
        listed = self._get(f"{url}?name={name}")
        return next((one for one in listed.json().get(key, []) if one.get("name") == name), None)

    def _connect(self, domain: str, channel: str) -> None:
        body = {
            "client_ids": [client["id"] for client in self.answers.values()],
            "channel_ids": [channel],
            "types": ["publish", "subscribe"],
        }
        if self._post(f"{self.channels}/{domain}/channels/connect", body).status_code not in {200, 201}:
            self.warnings.append("connect")

    def _post(self, url: str, body: dict[str, Any]) -> httpx.Response:
        return self._http.post(url, json=body, headers=self._headers())

    def _get(self, url: str) -> httpx.Response:
        return self._http.get(url, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
