"""The aggregator, as the coordinator calls it, and what it made."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from propeller.coordinator.documents import AssembledDocument
from propeller.coordinator.json_aggregator import JsonAggregator, strategy_refusal, strategy_remedy
from propeller.coordinator.registry_client import VALUES_FIELD
from propeller.errors import InvalidError, NotFoundError
from propeller.fl.tensors import (
    SAFETENSORS_SEQ,
    read_documents,
)
from propeller.fl.tensors.safetensors import read_header
from propeller.process.http import Answer, ServiceClient, ServiceError, UnreadableAnswerError
from propeller.protocol.aggregation import RESULT_FIELD, AggregationResult, StrategyField
from propeller.protocol.wire import decode_trusted


async def _read_answer(
    answer: Answer, model: AssembledDocument, state: AssembledDocument
) -> AggregationResult:
    """Read an answer of the aggregator into two documents.

    Raises:
        ValueError: it is not one.
    """
    result: AggregationResult | None = None
    came = 0
    async for document in read_documents(answer.aiter_bytes()):
        if result is None:
            result = AggregationResult.decode(
                decode_trusted(read_header(document).metadata.get(RESULT_FIELD, ""))
            )
            continue
        await (state if result.state and came % 2 else model).add(document)
        came += 1
    if result is None or came != result.parts * (1 + result.state):
        raise ValueError(f"it has {came} documents")
    model.check_whole()
    state.check_whole()
    return result


@dataclass(frozen=True)
class Aggregated:
    """What the aggregator made. Close it.

    Attributes:
        result: what it says about it.
        model: the model.
        state: the server state's tensors, of which there may be none.
    """

    result: AggregationResult
    model: AssembledDocument
    state: AssembledDocument

    @property
    def has_state(self) -> bool:
        """Whether the strategy keeps a server state."""
        return bool(self.state.specs or self.result.values)

    @property
    def state_metadata(self) -> dict[str, str]:
        """What the server state's document has beside its tensors."""
        return {VALUES_FIELD: json.dumps(self.result.values)}

    def close(self) -> None:
        """Let go of what it holds."""
        self.model.close()
        self.state.close()


class AggregatorClient:
    """Makes one model of many updates."""

    def __init__(self, client: ServiceClient, *, folder: Path | None = None) -> None:
        """Call the aggregator through ``client``; large models wait in ``folder``, or the system's temporary folder."""
        self._client, self._folder = client, folder
        self.as_json = JsonAggregator(client)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._client.base_url

    async def aggregate(
        self, documents: AsyncIterator[bytes], cut: Mapping[str, tuple[int, ...]]
    ) -> Aggregated:
        """Aggregate a plan and its documents (``protocol.aggregation``); ``cut`` has the shapes of tensors that come in pieces.

        Raises:
            ServiceError: the aggregator refused an update or does not answer.
        """
        model = AssembledDocument(self._folder, cut=cut.get)
        state = AssembledDocument(self._folder, cut=lambda name: cut.get(name.partition("/")[2]))
        try:
            headers = {"content-type": SAFETENSORS_SEQ}
            async with self._client.stream(
                "POST", "/aggregate", content=documents, headers=headers
            ) as answer:
                try:
                    result = await _read_answer(answer, model, state)
                except ValueError as error:
                    raise UnreadableAnswerError(
                        self._client.service, f"its aggregate cannot be read: {error}"
                    ) from None
        except BaseException:
            model.close()
            state.close()
            raise
        return Aggregated(result, model, state)

    def check_strategy(self, strategy: StrategyField) -> None:
        """See that it is not known already that the aggregator cannot do a strategy.

        Raises:
            InvalidError: it is.
        """
        if self.as_json.encoding.is_json and (reason := strategy_refusal(strategy)) is not None:
            raise InvalidError(f"strategy: {reason}, and {strategy_remedy(self.url)}")

    async def resolve_program(self, reference: str) -> str:
        """The reference with the digest of the program that aggregates, which the aggregator fetches.

        Raises:
            ServiceError: there is no such program, with the cause and the remedy; or the aggregator does not answer.
            InvalidError: the aggregator runs no programs.
        """
        try:
            answer = await self._client.request("POST", "/programs", json={"program": reference})
        except ServiceError as error:
            if error.kind is NotFoundError and not error.explained:
                raise InvalidError(f"strategy.program: {strategy_remedy(self.url)}") from None
            raise
        return str(answer.json()["program"])
