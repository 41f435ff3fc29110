"""Whose signatures of programs a service believes: ``PROXY_SIGNERS`` and its like."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from propeller.errors import StartError
from propeller.oci.errors import NotSignedError
from propeller.oci.signatures import Signature

if TYPE_CHECKING:
    from propeller.oci.signing import PublicKey


@dataclass(frozen=True)
class Signers:
    """The keys of which one must have signed a program; with none any program will do.

    Attributes:
        service: that asks for it, as in its settings.
        keys: the public keys.
    """

    service: str
    keys: "tuple[PublicKey, ...]" = ()

    @classmethod
    def read(cls, files: str, service: str) -> "Signers":
        """Read the files that a service's setting names, separated by commas.

        Raises:
            StartError: one cannot be read, or is no key; or there are commas alone, which nobody means as "anyone".
        """
        signers = cls(service)
        found = [Path(name.strip()) for name in files.split(",") if name.strip()]
        if not found:
            if files.strip():
                raise StartError(f"{signers.setting}: {files!r:.80} names no file: name one, or unset it")
            return signers
        from propeller.oci.signing import PublicKey  # 9 MB, for those who verify

        return cls(service, tuple(PublicKey.read(file, signers.setting) for file in found))

    @property
    def setting(self) -> str:
        """The variable that names the files."""
        return f"{self.service.upper()}_SIGNERS"

    def __bool__(self) -> bool:
        """Whether a program must be signed."""
        return bool(self.keys)

    def check(self, reference: str, manifest_digest: str, signatures: Sequence[Signature]) -> str:
        """See that one of the keys has signed an artifact; the key's name.

        Args:
            reference: the artifact's, for the error.
            manifest_digest: of its manifest.
            signatures: that it has.

        Raises:
            NotSignedError: none has.
        """
        from propeller.oci.signing import SignatureError, verify

        try:
            return verify(signatures, manifest_digest, self.keys).name
        except SignatureError as error:
            raise NotSignedError(
                f"{reference} must be signed: {error}",
                f"sign it: propeller signature add {reference} --key KEY (the {self.service}'s {self.setting} names who is believed)",
            ) from None
