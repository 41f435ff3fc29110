"""Users: people who manage clients and channels. They log in with a password and are then known by a token."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.exc import IntegrityError

from propeller.errors import ConflictError, StartError, UnauthenticatedError
from propeller.identity.credentials import Passwords, TokenClaims, TokenKind, Tokens
from propeller.identity.login_throttle import LoginThrottle
from propeller.identity.tables import (
    DISABLED,
    ENABLED,
    Page,
    fetch_page,
    fetch_row,
    format_seconds,
    list_answer,
    logins,
    new_id,
    users,
)
from propeller.process.logs import get_logger
from propeller.store.database import Database
from propeller.web.auth import Principal

log = get_logger("users")

ADMIN, USER = "admin", "user"

MAX_LOGINS = 50
"""Logins of one user that are open at a time: the one used longest ago ends."""

LOG_IN_AGAIN = "log in again (POST /users/tokens/issue)"


class Users:
    """The users, and who of them is calling."""

    def __init__(
        self, database: Database, passwords: Passwords, tokens: Tokens, throttle: LoginThrottle
    ) -> None:
        self._database, self._passwords, self._tokens, self._throttle = database, passwords, tokens, throttle
        self._login_locks = [asyncio.Lock() for _ in range(64)]

    async def ensure_admin(self, username: str, password: str | None) -> None:
        """Make the admin; a user of that name becomes one again, with this password (a way back in).

        Raises:
            StartError: there is no admin, and no password to make one.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(select(users).where(users.c.username == username))).one_or_none()
        if password is None:
            if row is None:
                raise StartError(
                    "IDENTITY_ADMIN_PASSWORD: not set, and there is no admin yet; set it to make one"
                )
            return
        if row is None:
            await self.create(username, password, role=ADMIN)
            return
        if not await self._passwords.matches(password, row.password_hash):
            log.info("the admin's password is now that of IDENTITY_ADMIN_PASSWORD", username=username)
            await self._set_password(row.id, password)
        async with self._database.transaction() as connection:
            await connection.execute(
                update(users).where(users.c.id == row.id).values(status=ENABLED, role=ADMIN)
            )

    async def login(self, username: str, password: str, peer: str) -> dict[str, str]:
        """Tokens for a user name and password; ``peer`` is the caller's address.

        Raises:
            UnauthenticatedError: they do not match.
            ThrottledError: too many tries from there.
        """
        guess = (username, peer)
        # One at a time: many at once would all be tried before the first has failed.
        async with self._login_locks[hash(guess) % len(self._login_locks)]:
            return await self._login(username, password, guess)

    async def _login(self, username: str, password: str, guess: tuple[str, str]) -> dict[str, str]:
        async with self._database.read() as connection:
            found = await connection.execute(select(users).where(users.c.username == username))
            row = found.one_or_none()
        with self._throttle.trying(guess):
            good = await self._passwords.matches(password, row.password_hash if row is not None else None)
        if not good or row is None or row.status != ENABLED:
            self._throttle.note_failure(guess)
            log.warning("login refused", username=username[:128], peer=guess[1])
            raise UnauthenticatedError("the user name or the password is wrong")
        self._throttle.note_success(guess)
        claims = TokenClaims(row.id, row.epoch, new_id(), new_id())
        async with self._database.transaction() as connection:
            kept = (
                select(logins.c.id)
                .where(logins.c.user_id == row.id, logins.c.expires_at > time.time())
                .order_by(logins.c.expires_at.desc())
                .limit(MAX_LOGINS - 1)
            )
            ids = [one.id for one in await connection.execute(kept)]
            await connection.execute(
                delete(logins).where(logins.c.user_id == row.id, logins.c.id.not_in(ids))
            )
            await connection.execute(logins.insert().values(self._login_row(claims)))
        return self._tokens.issue(claims)

    def _login_row(self, claims: TokenClaims) -> dict[str, Any]:
        return {
            "id": claims.login_id,
            "user_id": claims.user_id,
            "token_id": claims.token_id,
            "expires_at": time.time() + self._tokens.refresh_s,
        }

    async def refresh(self, token: str) -> dict[str, str]:
        """New tokens for a refresh token, which is good once: if it comes again, one of those who had it is a thief, and the login ends.

        Raises:
            UnauthenticatedError: it is not good any more.
        """
        claims, row = await self._token_user(token, "refresh")
        new = replace(claims, epoch=row.epoch, token_id=new_id())
        values = self._login_row(new)
        async with self._database.transaction() as connection:
            rotated = await connection.execute(
                update(logins)
                .where(logins.c.id == claims.login_id, logins.c.token_id == claims.token_id)
                .values(values)
            )
            if rotated.rowcount == 0:
                await connection.execute(delete(logins).where(logins.c.id == claims.login_id))
        if rotated.rowcount == 0:
            log.warning("a refresh token was used twice: its login is ended", user_id=row.id)
            raise UnauthenticatedError(
                f"the refresh token was used before, so its login is ended: {LOG_IN_AGAIN}"
            )
        return self._tokens.issue(new)

    async def logout(self, token: str) -> None:
        """End the login that an access token comes from: its tokens are not good any more.

        Raises:
            UnauthenticatedError: it is not good any more.
        """
        claims, _row = await self._token_user(token, "access")
        async with self._database.transaction() as connection:
            await connection.execute(delete(logins).where(logins.c.id == claims.login_id))

    async def identify(self, token: str) -> Principal:
        """The user behind an access token.

        Raises:
            UnauthenticatedError: it is not good any more.
        """
        _claims, row = await self._token_user(token, "access")
        return Principal("user", row.id, row.role, name=row.username)

    async def create(self, username: str, password: str, role: str = USER) -> dict[str, Any]:
        """A new user.

        Raises:
            ConflictError: there is one of that name.
        """
        row = {
            "id": new_id(),
            "username": username,
            "password_hash": await self._passwords.hash(password),
            "role": role,
            "status": ENABLED,
            "epoch": 0,
            "created_at": time.time(),
        }
        try:
            async with self._database.transaction() as connection:
                await connection.execute(users.insert().values(row))
        except IntegrityError:
            raise ConflictError(f"a user named {username!r} exists") from None
        return await self.get(str(row["id"]))

    async def get(self, user_id: str) -> dict[str, Any]:
        """One user.

        Raises:
            NotFoundError: there is none.
        """
        async with self._database.read() as connection:
            return _describe(await fetch_row(connection, users, "user", users.c.id == user_id))

    async def list(self, page: Page) -> dict[str, Any]:
        """A page of the users."""
        async with self._database.read() as connection:
            total, rows = await fetch_page(connection, users, page, name="username")
        return list_answer("users", page, total, [_describe(row) for row in rows])

    async def set_status(self, user_id: str, *, enabled: bool) -> dict[str, Any]:
        """Enable or disable a user; a disabled one's tokens are not good any more.

        Raises:
            NotFoundError: there is none.
        """
        values = {"status": ENABLED} if enabled else {"status": DISABLED, "epoch": users.c.epoch + 1}
        async with self._database.transaction() as connection:
            await connection.execute(update(users).where(users.c.id == user_id).values(values))
        return await self.get(user_id)

    async def change_password(self, user_id: str, old: str, new: str, peer: str) -> None:
        """Set a new password; the user's tokens are not good any more. ``peer`` is the caller's address.

        Raises:
            UnauthenticatedError: the old one is wrong.
            ThrottledError: too many tries from there.
        """
        async with self._database.read() as connection:
            row = await fetch_row(connection, users, "user", users.c.id == user_id)
        guess = (user_id, peer)
        with self._throttle.trying(guess):
            good = await self._passwords.matches(old, row.password_hash)
        if not good:
            self._throttle.note_failure(guess)
            raise UnauthenticatedError("the old password is wrong")
        await self._set_password(user_id, new)

    async def _set_password(self, user_id: str, password: str) -> None:
        values = {"password_hash": await self._passwords.hash(password), "epoch": users.c.epoch + 1}
        async with self._database.transaction() as connection:
            await connection.execute(update(users).where(users.c.id == user_id).values(values))
            await connection.execute(delete(logins).where(logins.c.user_id == user_id))

    async def _token_user(self, token: str, kind: TokenKind) -> tuple[TokenClaims, Row[Any]]:
        claims = self._tokens.read(token, kind)
        async with self._database.read() as connection:
            found = await connection.execute(
                select(users)
                .join(logins, logins.c.user_id == users.c.id)
                .where(users.c.id == claims.user_id, logins.c.id == claims.login_id)
            )
            row = found.one_or_none()
        if row is None or row.status != ENABLED or row.epoch != claims.epoch:
            raise UnauthenticatedError(f"the token is not good any more: {LOG_IN_AGAIN}")
        return claims, row


def _describe(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "credentials": {"username": row.username},
        "role": row.role,
        "status": row.status,
        "created_at": format_seconds(row.created_at),
    }
