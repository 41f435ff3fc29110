"""The roles of those who call a service or connect to the broker: people and their scripts, and the machines of a fleet."""

from enum import StrEnum


class Role(StrEnum):
    """What a caller is.

    People and scripts are ``admin``, ``operator`` or ``viewer``; the others are services and devices.
    """

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"
    MANAGER = "manager"
    COORDINATOR = "coordinator"
    PROXY = "proxy"
    PROPLET = "proplet"
    DEVICE = "device"


WATCH = frozenset({Role.ADMIN, Role.OPERATOR, Role.VIEWER})
"""Those who may see what happens in a domain."""

CONTROL = frozenset({Role.ADMIN, Role.OPERATOR})
"""Those who may also change it."""

PEOPLE = WATCH
"""Those that are people, or scripts in their place."""
