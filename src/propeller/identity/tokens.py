"""Tokens of users: JSON web tokens signed with a key that only this service has."""

import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import jwt

from propeller.errors import UnauthenticatedError

_ALGORITHM, _ISSUER = "HS256", "propeller.identity"

Kind = Literal["access", "refresh"]


@dataclass(frozen=True)
class Claims:
    """What a token says: whose it is, and the user's epoch when it was made."""

    user_id: str
    epoch: int


class Tokens:
    """Makes tokens and reads them."""

    def __init__(self, key: bytes, *, access_s: float, refresh_s: float) -> None:
        """``key`` of 32 bytes; the others are how long tokens are good for, in seconds."""
        self._key, self._seconds = key, {"access": access_s, "refresh": refresh_s}

    def issue(self, claims: Claims) -> dict[str, str]:
        """An access token and a refresh token."""
        return {"access_token": self._make(claims, "access"), "refresh_token": self._make(claims, "refresh")}

    def read(self, token: str, kind: Kind) -> Claims:
        """What a token says.

        Raises:
            UnauthenticatedError: with what is wrong.
        """
        try:
            body = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["exp", "sub", "type", "epoch"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError(
                "the token has expired: log in again (POST /users/tokens/issue)"
            ) from None
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the token is not one of this service") from None
        if body["type"] != kind:
            raise UnauthenticatedError(
                f"a token of the kind {kind} is needed here, this one is {body['type']}"
            )
        return Claims(body["sub"], body["epoch"])

    def _make(self, claims: Claims, kind: Kind) -> str:
        now = time.time()
        body: dict[str, Any] = {
            "iss": _ISSUER,
            "sub": claims.user_id,
            "epoch": claims.epoch,
            "type": kind,
            "iat": int(now),
            "exp": int(now + self._seconds[kind]),
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(body, self._key, algorithm=_ALGORITHM)
