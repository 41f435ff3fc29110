"""Peers that read JSON alone, as the aggregator and the model registry of absmach/propeller: what shows that one does."""

from propeller.fl.tensors import SAFETENSORS, media_type
from propeller.process.http import Answer, ServiceError
from propeller.process.logs import get_logger

log = get_logger("coordinator")

_REFUSALS = frozenset({400, 415, 422})


class PeerEncoding:
    """Whether a peer reads JSON alone, as its answers have shown.

    It is remembered until the peer was away: another one may be in its place then.
    """

    def __init__(self, service: str, url: str, means: str) -> None:
        """``means``: what follows from it, for the log."""
        self._service, self._url, self._means = service, url, means
        self._is_told = False
        self.is_json = False
        """Whether it does."""

    def may_be_json(self, error: ServiceError) -> bool:
        """Whether a refusal of safetensors may come from such a peer: services of this project explain theirs."""
        return error.status in _REFUSALS and not error.explained

    def note_json(self) -> None:
        """It has refused safetensors and taken JSON."""
        if not self._is_told:
            log.info("%s reads JSON alone: %s", self._service, self._means, url=self._url)
        self.is_json = self._is_told = True

    def note_answer(self, answer: Answer) -> None:
        """Look at the answer to a request in JSON that would have taken safetensors as well."""
        if media_type(answer.headers.get("content-type")) == SAFETENSORS:
            self.note_safetensors()

    def note_safetensors(self) -> None:
        """It knows them after all."""
        if self._is_told:
            log.info("%s reads safetensors now", self._service, url=self._url)
        self.is_json = self._is_told = False

    def note_failure(self, error: ServiceError) -> None:
        """Look at why a request in JSON failed."""
        if error.temporary:
            self.is_json = False
