"""The identity service's HTTP API: every path on each of its ports."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request, Response
from pydantic import AfterValidator

from propeller.errors import RefusedError, UnauthenticatedError
from propeller.identity import requests
from propeller.identity.clients import NewClient
from propeller.identity.service import Identity
from propeller.identity.tables import MAX_ROWS_PER_PAGE, Page
from propeller.identity.users import ADMIN
from propeller.process.audit import note
from propeller.protocol.ids import Id
from propeller.protocol.task import encode_json
from propeller.protocol.topics import Channel
from propeller.web.app import Router, create_app, etag_matches
from propeller.web.auth import Admission, Caller, Principal

MAX_BODY_BYTES = 1024 * 1024
OPEN_PATHS = frozenset(
    {"/users/tokens/issue", "/users/tokens/refresh", "/auth/verify", "/devices/join", "/devices/ca"}
)

Switch = Literal["enable", "disable"]


async def calling_user(principal: Caller) -> Principal:
    """The calling user; clients do not manage anything."""
    if principal.kind != "user":
        raise RefusedError("a user's token is needed here, a client's key is not enough")
    return principal


async def calling_admin(principal: Annotated[Principal, Depends(calling_user)]) -> Principal:
    """The calling admin."""
    if principal.role != ADMIN:
        raise RefusedError(
            "only an admin of identity, as the first user is, may do this; an admin of a domain may not"
        )
    return principal


async def kept_nowhere(response: Response) -> None:
    """The answer has a key or a token: nothing on its way may keep it."""
    response.headers["cache-control"] = "no-store"


KEPT_NOWHERE = Depends(kept_nowhere)

CallingUser = Annotated[Principal, Depends(calling_user)]


async def requested_page(
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS_PER_PAGE)] = 100,
    name: Annotated[str | None, Query(max_length=128), AfterValidator(requests.printable)] = None,
    status: Literal["enabled", "disabled", "all"] = "all",
) -> Page:
    """The page of a list that the query asks for."""
    return Page(offset, limit, name, None if status == "all" else status)


RequestedPage = Annotated[Page, Depends(requested_page)]


def create_api(identity: Identity, database_health: Callable[[], dict[str, str]] = dict) -> Any:
    """The app over an identity service; ``database_health`` says what is wrong with the database, for ``/health``."""
    app = create_app(
        "identity",
        admission=Admission(identity.verify, sites=identity.sites, audit=identity.audit),
        audited=lambda _method, path: path != "/auth/verify",
        open_paths=OPEN_PATHS,
        max_body=MAX_BODY_BYTES,
        health=lambda: _health(identity) | database_health(),
    )
    for routes in (
        _login_routes,
        _user_routes,
        _domain_routes,
        _client_routes,
        _channel_routes,
        _join_routes,
        _device_routes,
    ):
        app.include_router(routes(identity))
    return app


def _health(identity: Identity) -> dict[str, Any]:
    health: dict[str, Any] = {"status": "ok", "broker": "connected" if identity.link.connected else "away"}
    if identity.link.connected and (usage := identity.sessions.usage) is not None:
        health |= {"subscriptions": usage.subscriptions, "max_subscriptions": usage.limit}
    return health


def _login_routes(identity: Identity) -> Router:
    router = Router()

    @router.post("/users/tokens/issue", status_code=201, dependencies=[KEPT_NOWHERE])
    async def issue(body: requests.LoginRequest, request: Request) -> dict[str, str]:
        note(user=body.username)
        return await identity.users.login(body.username, body.password.get_secret_value(), _address(request))

    @router.post("/users/tokens/refresh", status_code=201, dependencies=[KEPT_NOWHERE])
    async def refresh(request: Request) -> dict[str, str]:
        return await identity.users.refresh(_bearer(request, "refresh"))

    @router.post("/users/tokens/revoke", status_code=204)
    async def revoke(request: Request) -> None:
        await identity.users.logout(_bearer(request, "access"))

    @router.post("/auth/verify")
    async def verify(body: requests.VerifyRequest) -> dict[str, str]:
        who = await identity.verify(body.authorization, body.domain)
        return {"kind": who.kind, "id": who.id, "role": who.role, "domain": who.domain, "name": who.name}

    @router.get("/auth/compat")
    async def compat(domain_id: Id, channel_id: Id, who: Caller) -> dict[str, list[str]]:
        return {"clients": identity.compat_proplets(Channel(domain_id, channel_id), who)}

    @router.get("/auth/names")
    async def names(domain_id: Id, channel_id: Id, request: Request, who: Caller) -> Response:
        known = request.headers.get("if-none-match", "")
        version, told = identity.proplet_names(
            Channel(domain_id, channel_id), who, known=lambda version: etag_matches(known, f'"{version}"')
        )
        headers = {"ETag": f'"{version}"'}
        if told is None:
            return Response(status_code=304, headers=headers)
        return Response(encode_json({"clients": told}), media_type="application/json", headers=headers)

    @router.get("/auth/duplicates")
    async def duplicates(domain_id: Id, who: Caller) -> dict[str, list[str]]:
        return {"clients": await identity.duplicates(domain_id, who)}

    return router


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _bearer(request: Request, kind: str) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthenticatedError(f"send the {kind} token as Bearer")
    return token.strip()


def _user_routes(identity: Identity) -> Router:
    router, users = Router(), identity.users

    @router.get("/users/profile")
    async def profile(who: CallingUser) -> dict[str, Any]:
        return await users.get(who.id)

    @router.patch("/users/secret", status_code=204)
    async def change_password(body: requests.NewPassword, who: CallingUser, request: Request) -> None:
        await users.change_password(
            who.id,
            body.old_secret.get_secret_value(),
            body.new_secret.get_secret_value(),
            _address(request),
        )

    @router.post("/users", status_code=201, dependencies=[Depends(calling_admin)])
    async def create_user(body: requests.NewUser) -> dict[str, Any]:
        made = await users.create(body.username, body.password.get_secret_value(), body.role)
        note(user=body.username, id=made["id"], role=body.role)
        return made

    @router.get("/users", dependencies=[Depends(calling_admin)])
    async def list_users(page: RequestedPage) -> dict[str, Any]:
        return await users.list(page)

    @router.get("/users/{user_id}", dependencies=[Depends(calling_admin)])
    async def get_user(user_id: Id) -> dict[str, Any]:
        return await users.get(user_id)

    @router.post("/users/{user_id}/{switch}", dependencies=[Depends(calling_admin)])
    async def switch_user(user_id: Id, switch: Switch) -> dict[str, Any]:
        return await users.set_status(user_id, enabled=switch == "enable")

    return router


def _domain_routes(identity: Identity) -> Router:
    router, domains = Router(), identity.domains

    @router.post("/domains", status_code=201)
    async def create_domain(body: requests.NewDomain, who: CallingUser) -> dict[str, Any]:
        made = await domains.create(body.name, body.route, who.id)
        note(domain=body.name, id=made["id"])
        return made

    @router.get("/domains")
    async def list_domains(page: RequestedPage, who: CallingUser) -> dict[str, Any]:
        return await domains.list(page, who)

    @router.get("/domains/{domain_id}")
    async def get_domain(domain_id: Id, who: CallingUser) -> dict[str, Any]:
        await domains.check(domain_id, who)
        return await domains.get(domain_id)

    @router.get("/domains/{domain_id}/members")
    async def list_members(domain_id: Id, who: CallingUser) -> dict[str, Any]:
        await domains.check(domain_id, who)
        return await domains.members(domain_id)

    @router.put("/domains/{domain_id}/members/{user_id}")
    async def put_member(
        domain_id: Id, user_id: Id, body: requests.Membership, who: CallingUser
    ) -> dict[str, Any]:
        await domains.check(domain_id, who)
        await domains.put_member(domain_id, user_id, body.role)
        note(role=body.role)
        return {"user_id": user_id, "role": body.role}

    @router.delete("/domains/{domain_id}/members/{user_id}", status_code=204)
    async def remove_member(domain_id: Id, user_id: Id, who: CallingUser) -> None:
        await domains.check(domain_id, who)
        await domains.remove_member(domain_id, user_id)

    @router.post("/domains/{domain_id}/{switch}")
    async def switch_domain(domain_id: Id, switch: Switch, who: CallingUser) -> dict[str, Any]:
        await domains.check(domain_id, who)
        return await domains.set_status(domain_id, f"{switch}d")

    return router


def _domain_router(identity: Identity) -> Router:
    """A router of paths inside a domain, for those who may manage it."""

    async def check(domain_id: Id, who: CallingUser) -> None:
        await identity.domains.check(domain_id, who)

    return Router(prefix="/{domain_id}", dependencies=[Depends(check)])


def _client_routes(identity: Identity) -> Router:
    router, clients = _domain_router(identity), identity.clients

    @router.post("/clients", status_code=201, dependencies=[KEPT_NOWHERE])
    async def create_client(domain_id: Id, body: requests.NewClientRequest) -> dict[str, Any]:
        new = NewClient(body.name, body.role, body.tags, body.metadata, body.status, body.compat)
        made = await clients.create(domain_id, new)
        note(client=body.name, id=made["id"])
        return made

    @router.get("/clients", dependencies=[KEPT_NOWHERE])
    async def list_clients(domain_id: Id, page: RequestedPage) -> dict[str, Any]:
        found = await clients.list(domain_id, page)
        _note_keys(found["clients"])
        return found

    @router.get("/clients/{client_id}", dependencies=[KEPT_NOWHERE])
    async def get_client(domain_id: Id, client_id: Id) -> dict[str, Any]:
        found = await clients.get_with_key(domain_id, client_id)
        _note_keys([found])
        return found

    @router.patch("/clients/{client_id}")
    async def change_client(domain_id: Id, client_id: Id, body: requests.ClientChange) -> dict[str, Any]:
        changed = await clients.set_compat(domain_id, client_id, compat=body.compat)
        note(compat=body.compat)
        return changed

    @router.post("/clients/{client_id}/secret", dependencies=[KEPT_NOWHERE])
    @router.patch("/clients/{client_id}/secret", dependencies=[KEPT_NOWHERE])
    async def rotate_key(domain_id: Id, client_id: Id) -> dict[str, Any]:
        return await clients.rotate_key(domain_id, client_id)

    @router.post("/clients/{client_id}/{switch}")
    async def switch_client(domain_id: Id, client_id: Id, switch: Switch) -> dict[str, Any]:
        return await clients.set_status(domain_id, client_id, f"{switch}d")

    @router.delete("/clients/{client_id}", status_code=204)
    async def delete_client(domain_id: Id, client_id: Id) -> None:
        await clients.delete(domain_id, client_id)

    return router


def _note_keys(shown: Sequence[dict[str, Any]]) -> None:
    """Have the audit log say whose keys were read; those of one name are few."""
    names = [one["name"] for one in shown if "secret" in one["credentials"]]
    if names:
        note(keys_of=",".join(names))


def _note_connections(
    body: requests.ConnectionsRequest | requests.ChannelConnectionsRequest, channels: Sequence[str]
) -> None:
    note(clients=",".join(body.client_ids), channels=",".join(channels), types=",".join(body.types))


def _channel_routes(identity: Identity) -> Router:
    router, channels = _domain_router(identity), identity.channels

    @router.post("/channels", status_code=201)
    async def create_channel(domain_id: Id, body: requests.NewChannel) -> dict[str, Any]:
        made = await channels.create(domain_id, body.name, body.status)
        note(channel=body.name, id=made["id"])
        return made

    @router.get("/channels")
    async def list_channels(domain_id: Id, page: RequestedPage) -> dict[str, Any]:
        return await channels.list(domain_id, page)

    @router.post("/channels/connect", status_code=201)
    async def connect(domain_id: Id, body: requests.ConnectionsRequest) -> dict[str, Any]:
        await channels.connect(domain_id, body.client_ids, body.channel_ids, body.types)
        _note_connections(body, body.channel_ids)
        return body.model_dump()

    @router.post("/channels/disconnect", status_code=204)
    async def disconnect(domain_id: Id, body: requests.ConnectionsRequest) -> None:
        await channels.disconnect(domain_id, body.client_ids, body.channel_ids, body.types)
        _note_connections(body, body.channel_ids)

    @router.get("/channels/{channel_id}")
    async def get_channel(domain_id: Id, channel_id: Id) -> dict[str, Any]:
        return await channels.get(domain_id, channel_id)

    @router.post("/channels/{channel_id}/connect", status_code=201)
    async def connect_one(
        domain_id: Id, channel_id: Id, body: requests.ChannelConnectionsRequest
    ) -> dict[str, Any]:
        await channels.connect(domain_id, body.client_ids, [channel_id], body.types)
        _note_connections(body, [channel_id])
        return {**body.model_dump(), "channel_ids": [channel_id]}

    @router.post("/channels/{channel_id}/disconnect", status_code=204)
    async def disconnect_one(domain_id: Id, channel_id: Id, body: requests.ChannelConnectionsRequest) -> None:
        await channels.disconnect(domain_id, body.client_ids, [channel_id], body.types)
        _note_connections(body, [channel_id])

    @router.post("/channels/{channel_id}/{switch}")
    async def switch_channel(domain_id: Id, channel_id: Id, switch: Switch) -> dict[str, Any]:
        return await channels.set_status(domain_id, channel_id, f"{switch}d")

    @router.delete("/channels/{channel_id}", status_code=204)
    async def delete_channel(domain_id: Id, channel_id: Id) -> None:
        await channels.delete(domain_id, channel_id)

    return router


def _join_routes(identity: Identity) -> Router:
    """What a device calls."""
    router, devices = Router(), identity.devices

    @router.get("/devices/ca", response_class=Response)
    async def authority() -> Response:
        return Response(devices.authority(), media_type="application/x-pem-file")

    @router.post("/devices/join", dependencies=[KEPT_NOWHERE])
    async def join(body: requests.JoinRequest, request: Request) -> dict[str, Any]:
        joined = await devices.join(*body.secrets(), _address(request))
        note(device=joined["name"], id=joined["id"])
        return joined

    @router.get("/devices/self")
    async def describe_self(who: Caller) -> dict[str, Any]:
        if who.kind != "client":
            raise RefusedError("only a device may ask, with its id and key")
        return await devices.describe_self(who.id)

    return router


def _device_routes(identity: Identity) -> Router:
    """What a person calls: an operator of the domain, too."""
    devices = identity.devices

    async def check(domain_id: Id, who: CallingUser) -> None:
        await identity.domains.check_operator(domain_id, who)

    router = Router(prefix="/{domain_id}/devices", dependencies=[Depends(check)])

    @router.post("", status_code=201, dependencies=[KEPT_NOWHERE])
    async def add(domain_id: Id, body: requests.NewDevice) -> dict[str, Any]:
        added = await devices.add(domain_id, body.name, body.tags, body.lifetime_s, body.channel)
        note(device=body.name, id=added["id"])
        return added

    @router.get("")
    async def list_devices(domain_id: Id) -> dict[str, Any]:
        return {"devices": await devices.list(domain_id)}

    @router.patch("/{client_id}")
    async def change(domain_id: Id, client_id: Id, body: requests.DeviceChange) -> dict[str, Any]:
        changed = await devices.change(domain_id, client_id, name=body.name, tags=body.tags)
        note(device=changed["name"], **({} if body.tags is None else {"tags": ",".join(body.tags)}))
        return changed

    @router.delete("/{client_id}", status_code=204)
    async def remove(domain_id: Id, client_id: Id) -> None:
        note(device=await devices.remove(domain_id, client_id))

    return router
