"""The first model, and how the newest round ended."""

from propeller.doctor.facts import Facts
from propeller.doctor.findings import Finding, failed, passed
from propeller.doctor.questions import Questions
from propeller.doctor.target import Target

_REMEDIES = (
    ("cannot be fetched", "see 'image'; name the program of that round with --image {image}"),
    ("aggregation:", "see 'aggregator' and 'model-registry'; then POST {coordinator}/rounds/{round}/retry"),
    ("wall_time_s", "give tasks more time: PROPLET_TASK_WALL_TIME"),
    ("memory_bytes", "give tasks more memory: PROPLET_TASK_MEMORY"),
    ("not alive", "see 'proplets'"),
    ("deadline: 0 of", "no update came: see 'image' and 'proplets', or give the round more timeout_s"),
    ("deadline:", "see 'proplets', lower k_of_n, or give the round more timeout_s"),
)
"""What stands in a reason, and what to do; the first that fits."""


class Learning:
    """Asks the model registry and the coordinator."""

    def __init__(self, target: Target, ask: Questions, facts: Facts) -> None:
        self._target, self._ask, self._facts = target, ask, facts

    async def model(self) -> list[Finding]:
        """Whether there is a model to begin with."""
        url = self._target.services["model-registry"]
        found = await self._ask.document(f"{url}/models", self._target.client("manager"))
        if 0 in found["versions"]:
            return [passed("model 0", f"{url}/models/0 is there; versions: {len(found['versions'])}")]
        body = '{"version": 0, "model": {"w": [0.0, 0.0, 0.0], "b": 0.0}}'
        fix = f"curl -X POST {url}/models -H 'Content-Type: application/json' -d '{body}'"
        return [failed("model 0", f"{url} has no model 0 to begin with", fix)]

    async def rounds(self) -> list[Finding]:
        """Whether the newest round failed, and why."""
        url, who = self._target.services["coordinator"], self._target.client("manager")
        page = await self._ask.document(f"{url}/rounds", who, params={"limit": 1})
        if not page["rounds"]:
            return [passed("rounds", "none was started yet")]
        newest = await self._ask.document(f"{url}/rounds/{page['rounds'][0]['round_id']}", who)
        self._facts.newest_round = newest
        name, state = newest["round_id"], newest["state"]
        if state != "failed":
            return [passed("rounds", f"the newest, {name}, is {state}")]
        reason = str(newest.get("reason") or "without a reason")
        return [failed("rounds", f"the newest, {name}, failed: {reason}", self._remedy(newest, reason))]

    def _remedy(self, newest: dict[str, object], reason: str) -> str:
        text = next((remedy for part, remedy in _REMEDIES if part in reason), "")
        names = {
            "image": newest.get("task_wasm_image"),
            "coordinator": self._target.services["coordinator"],
            "round": newest["round_id"],
        }
        look = self._target.advice.look("coordinator")
        return f"{text.format(**names)}; {look}" if text else look
