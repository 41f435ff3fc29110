"""The identity service's HTTP API: every path on each of its ports."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from pydantic import AfterValidator

from propeller.errors import RefusedError, UnauthenticatedError
from propeller.identity import bodies
from propeller.identity.clients import NewClient
from propeller.identity.records import MOST_PER_PAGE, Page
from propeller.identity.service import Identity
from propeller.identity.users import ADMIN
from propeller.protocol.ids import Id
from propeller.web.app import Router, create_app
from propeller.web.auth import Principal, caller

MAX_BODY = 1024 * 1024
OPEN = frozenset({"/users/tokens/issue", "/users/tokens/refresh", "/auth/verify"})

Switch = Literal["enable", "disable"]


async def user(principal: Annotated[Principal, Depends(caller)]) -> Principal:
    """The calling user; clients do not manage anything."""
    if principal.kind != "user":
        raise RefusedError("a user's token is needed here, a client's key is not enough")
    return principal


async def admin(principal: Annotated[Principal, Depends(user)]) -> Principal:
    """The calling admin."""
    if principal.role != ADMIN:
        raise RefusedError("only an admin may do this")
    return principal


User = Annotated[Principal, Depends(user)]


async def page(
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_PER_PAGE)] = 100,
    name: Annotated[str | None, Query(max_length=128), AfterValidator(bodies.printable)] = None,
    status: Literal["enabled", "disabled", "all"] = "all",
) -> Page:
    """The part of a list that is asked for."""
    return Page(offset, limit, name, None if status == "all" else status)


Part = Annotated[Page, Depends(page)]


def create_api(identity: Identity) -> Any:
    """The app over an identity service."""
    app = create_app(
        "identity",
        verify=identity.verify,
        open_paths=OPEN,
        max_body=MAX_BODY,
        health=lambda: _health(identity),
    )
    for router in (_logins(identity), _users(identity), _domains(identity), _members(identity)):
        app.include_router(router)
    return app


def _health(identity: Identity) -> dict[str, Any]:
    health: dict[str, Any] = {"status": "ok", "broker": "connected" if identity.link.connected else "away"}
    if identity.link.connected and (usage := identity.sessions.usage) is not None:
        health |= {"subscriptions": usage.subscriptions, "max_subscriptions": usage.limit}
    return health


def _logins(identity: Identity) -> Router:
    router = Router()

    @router.post("/users/tokens/issue", status_code=201)
    async def issue(body: bodies.Login, request: Request) -> dict[str, str]:
        peer = request.client.host if request.client else ""
        return await identity.users.login(body.username, body.password.get_secret_value(), peer)

    @router.post("/users/tokens/refresh", status_code=201)
    async def refresh(request: Request) -> dict[str, str]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("send the refresh token as Bearer", {"WWW-Authenticate": "Bearer"})
        return await identity.users.refresh(token.strip())

    @router.post("/auth/verify")
    async def verify(body: bodies.VerifyBody) -> dict[str, str]:
        who = await identity.verify(body.authorization)
        return {"kind": who.kind, "id": who.id, "role": who.role}

    return router


def _users(identity: Identity) -> Router:
    router, users = Router(), identity.users

    @router.get("/users/profile")
    async def profile(who: User) -> dict[str, Any]:
        return await users.get(who.id)

    @router.patch("/users/secret", status_code=204)
    async def change_password(body: bodies.NewPassword, who: User) -> None:
        await users.change_password(
            who.id, body.old_secret.get_secret_value(), body.new_secret.get_secret_value()
        )

    @router.post("/users", status_code=201, dependencies=[Depends(admin)])
    async def create(body: bodies.NewUser) -> dict[str, Any]:
        return await users.create(body.username, body.password.get_secret_value(), body.role)

    @router.get("/users", dependencies=[Depends(admin)])
    async def every(part: Part) -> dict[str, Any]:
        return await users.list(part)

    @router.get("/users/{user_id}", dependencies=[Depends(admin)])
    async def one(user_id: Id) -> dict[str, Any]:
        return await users.get(user_id)

    @router.post("/users/{user_id}/{switch}", dependencies=[Depends(admin)])
    async def switch(user_id: Id, switch: Switch) -> dict[str, Any]:
        return await users.set_status(user_id, enabled=switch == "enable")

    return router


def _domains(identity: Identity) -> Router:
    router, domains = Router(), identity.domains

    @router.post("/domains", status_code=201)
    async def create(body: bodies.DomainBody, who: User) -> dict[str, Any]:
        return await domains.create(body.name, body.route, who.id)

    @router.get("/domains")
    async def every(part: Part, who: User) -> dict[str, Any]:
        return await domains.list(part, who)

    @router.get("/domains/{domain_id}")
    async def one(domain_id: Id, who: User) -> dict[str, Any]:
        await domains.check(domain_id, who)
        return await domains.get(domain_id)

    @router.post("/domains/{domain_id}/{switch}")
    async def switch(domain_id: Id, switch: Switch, who: User) -> dict[str, Any]:
        await domains.check(domain_id, who)
        return await domains.set_status(domain_id, f"{switch}d")

    return router


def _members(identity: Identity) -> Router:
    """Clients and channels of a domain."""

    async def check(domain_id: Id, who: User) -> None:
        await identity.domains.check(domain_id, who)

    router = Router(prefix="/{domain_id}", dependencies=[Depends(check)])
    _clients(router, identity)
    _channels(router, identity)
    return router


def _clients(router: Router, identity: Identity) -> None:
    clients = identity.clients

    @router.post("/clients", status_code=201)
    async def create_client(domain_id: Id, body: bodies.ClientBody) -> dict[str, Any]:
        new = NewClient(body.name, body.role, body.tags, body.metadata, body.status)
        return await clients.create(domain_id, new)

    @router.get("/clients")
    async def every_client(domain_id: Id, part: Part) -> dict[str, Any]:
        return await clients.list(domain_id, part)

    @router.get("/clients/{client_id}")
    async def one_client(domain_id: Id, client_id: Id) -> dict[str, Any]:
        return await clients.get(domain_id, client_id)

    @router.post("/clients/{client_id}/secret")
    @router.patch("/clients/{client_id}/secret")
    async def rotate_key(domain_id: Id, client_id: Id) -> dict[str, Any]:
        return await clients.rotate_key(domain_id, client_id)

    @router.post("/clients/{client_id}/{switch}")
    async def switch_client(domain_id: Id, client_id: Id, switch: Switch) -> dict[str, Any]:
        return await clients.set_status(domain_id, client_id, f"{switch}d")

    @router.delete("/clients/{client_id}", status_code=204)
    async def delete_client(domain_id: Id, client_id: Id) -> None:
        await clients.delete(domain_id, client_id)


def _channels(router: Router, identity: Identity) -> None:
    channels = identity.channels

    @router.post("/channels", status_code=201)
    async def create_channel(domain_id: Id, body: bodies.ChannelBody) -> dict[str, Any]:
        return await channels.create(domain_id, body.name, body.status)

    @router.get("/channels")
    async def every_channel(domain_id: Id, part: Part) -> dict[str, Any]:
        return await channels.list(domain_id, part)

    @router.post("/channels/connect", status_code=201)
    async def connect(domain_id: Id, body: bodies.ConnectionBody) -> dict[str, Any]:
        await channels.connect(domain_id, body.client_ids, body.channel_ids, body.types)
        return body.model_dump()

    @router.post("/channels/disconnect", status_code=204)
    async def disconnect(domain_id: Id, body: bodies.ConnectionBody) -> None:
        await channels.disconnect(domain_id, body.client_ids, body.channel_ids, body.types)

    @router.get("/channels/{channel_id}")
    async def one_channel(domain_id: Id, channel_id: Id) -> dict[str, Any]:
        return await channels.get(domain_id, channel_id)

    @router.post("/channels/{channel_id}/connect", status_code=201)
    async def connect_one(
        domain_id: Id, channel_id: Id, body: bodies.ChannelConnectionBody
    ) -> dict[str, Any]:
        await channels.connect(domain_id, body.client_ids, [channel_id], body.types)
        return {**body.model_dump(), "channel_ids": [channel_id]}

    @router.post("/channels/{channel_id}/disconnect", status_code=204)
    async def disconnect_one(domain_id: Id, channel_id: Id, body: bodies.ChannelConnectionBody) -> None:
        await channels.disconnect(domain_id, body.client_ids, [channel_id], body.types)

    @router.post("/channels/{channel_id}/{switch}")
    async def switch_channel(domain_id: Id, channel_id: Id, switch: Switch) -> dict[str, Any]:
        return await channels.set_status(domain_id, channel_id, f"{switch}d")

    @router.delete("/channels/{channel_id}", status_code=204)
    async def delete_channel(domain_id: Id, channel_id: Id) -> None:
        await channels.delete(domain_id, channel_id)
