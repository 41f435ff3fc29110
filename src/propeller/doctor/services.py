"""Whether each service answers where it should."""

import time
from email.utils import parsedate_to_datetime

import httpx

from propeller.doctor.facts import Facts
from propeller.doctor.findings import Finding, failed, passed
from propeller.doctor.machine import listener_on
from propeller.doctor.questions import NoAnswerError, Questions, place_of
from propeller.doctor.target import Target

_HEALTHY = frozenset({"ok", "pass"})


class Services:
    """Asks each service for its health."""

    def __init__(self, target: Target, ask: Questions, facts: Facts) -> None:
        self._target, self._ask, self._facts = target, ask, facts

    async def service(self, name: str) -> list[Finding]:
        """A service with one address."""
        url = self._target.services[name]
        try:
            answer = await self._answer(name, f"{url}/health")
        except NoAnswerError as error:
            return [self._failed(name, error)]
        if _status(answer) not in _HEALTHY:
            return [self._foreign(name, url)]
        return [passed(name, f"{url} answers")]

    async def identity(self) -> list[Finding]:
        """Identity, on its four ports."""
        for listener, url in self._target.identity.items():
            try:
                answer = await self._answer(f"identity ({listener})", f"{url}/health")
            except NoAnswerError as error:
                return [self._failed("identity", error)]
            if _status(answer) not in _HEALTHY:
                return [self._foreign("identity", url)]
            health = answer.json()
            self._facts.identity_away = health.get("broker") == "away"
            counts = (health.get("subscriptions"), health.get("max_subscriptions"))
            if all(isinstance(count, int) for count in counts):
                self._facts.subscriptions = counts
        return [passed("identity", f"{', '.join(self._target.identity.values())} answer")]

    async def _answer(self, name: str, url: str) -> httpx.Response:
        before = time.time()
        answer = await self._ask.send(url)
        try:
            shown = parsedate_to_datetime(answer.headers["date"]).timestamp()
        except (KeyError, ValueError):
            return answer
        # The header has whole seconds: it is right anywhere in the second that it names.
        now = time.time()
        ahead = shown - now if shown > now else min(shown + 1 - before, 0)
        self._facts.clocks[name] = ahead
        return answer

    def _failed(self, name: str, error: NoAnswerError) -> Finding:
        return failed(name, str(error), self._target.advice.restart(name))

    def _foreign(self, name: str, url: str) -> Finding:
        detail = f"{url} is answered by something else than {name}"
        return failed(name, detail, self._target.advice.free_port(listener_on(*place_of(url))))


def _status(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("status")) if answer.is_success else ""
    except (ValueError, AttributeError, RecursionError):
        return ""
