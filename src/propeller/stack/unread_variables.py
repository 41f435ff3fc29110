"""Variables that a service does not read, those of absmach/propeller's and misspelt ones: whoever sets one is told so when it starts."""

import os
import re
from collections.abc import Iterable, Mapping

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from propeller.process.logs import get_logger
from propeller.process.settings import ServiceSettings
from propeller.protocol.strict import nearest_names

log = get_logger("settings")

_NO_TRACES = "traces are not written; GET /metrics and the logs tell what happens"
_NO_PLUGINS = "there are no plugins"
_DATABASE = "MANAGER_DATABASE says where the manager keeps its data"
_HTTP_LIMITS = "limits of HTTP requests are fixed"
_NO_TEE = "encrypted programs and attestation are not supported"
_NO_HOST = "programs reach nothing outside of their sandbox"
_MQTT_LIBRARY = "it tunes an MQTT library that is not used here"

MANAGER: Mapping[str, str] = {
    "MANAGER_OTEL_URL": _NO_TRACES,
    "MANAGER_TRACE_RATIO": _NO_TRACES,
    "MANAGER_PLUGIN_DIR": _NO_PLUGINS,
    "JOB_EXECUTION_MODE": "there are no jobs",
    "MANAGER_STORAGE_TYPE": _DATABASE,
    "MANAGER_SQLITE_PATH": _DATABASE,
    "MANAGER_BADGER_PATH": _DATABASE,
    "MANAGER_POSTGRES_HOST": _DATABASE,
    "MANAGER_POSTGRES_PORT": _DATABASE,
    "MANAGER_POSTGRES_USER": _DATABASE,
    "MANAGER_POSTGRES_PASS": _DATABASE,
    "MANAGER_POSTGRES_DB": _DATABASE,
    "MANAGER_POSTGRES_SSLMODE": _DATABASE,
    "MANAGER_HTTP_SERVER_READ_TIMEOUT": _HTTP_LIMITS,
    "MANAGER_HTTP_SERVER_WRITE_TIMEOUT": _HTTP_LIMITS,
    "MANAGER_HTTP_SERVER_READ_HEADER_TIMEOUT": _HTTP_LIMITS,
    "MANAGER_HTTP_SERVER_IDLE_TIMEOUT": _HTTP_LIMITS,
    "MANAGER_HTTP_SERVER_MAX_HEADER_BYTES": _HTTP_LIMITS,
}
"""Variable → what holds instead."""

PROXY: Mapping[str, str] = {
    "PROXY_INSTANCE_ID": "the client's id is the MQTT client identifier",
    "PROXY_OTEL_URL": _NO_TRACES,
    "PROXY_TRACE_RATIO": _NO_TRACES,
}

PROPLET: Mapping[str, str] = {
    "PROPLET_MQTT_INFLIGHT": _MQTT_LIBRARY,
    "PROPLET_MQTT_REQUEST_CHANNEL_CAPACITY": _MQTT_LIBRARY,
    "PROPLET_KBS_URI": _NO_TEE,
    "PROPLET_AA_CONFIG_PATH": _NO_TEE,
    "PROPLET_LAYER_STORE_PATH": _NO_TEE,
    "PROPLET_PULL_CONCURRENT_LIMIT": _NO_TEE,
    "PROPLET_HTTP_TLS_CA_CERT": "programs come through the proxy, not over HTTPS",
    "PROPLET_HTTP_TLS_INSECURE_SKIP_VERIFY": "certificates of HTTPS services are always checked",
    "PROPLET_HAL_ENABLED": _NO_HOST,
    "PROPLET_HTTP_ENABLED": _NO_HOST,
    "PROPLET_USB_ENABLED": _NO_HOST,
    "PROPLET_HTTP_PROXY_PORT": _NO_HOST,
    "PROPLET_DIRS": _NO_HOST,
    "PROPLET_PLUGIN_DIR": _NO_PLUGINS,
    "PROPLET_METRICS_PORT": "a proplet serves no HTTP; its metrics go to the manager",
    "PROPLET_METRICS_ENABLED": "a proplet serves no HTTP; PROPLET_ENABLE_MONITORING is for what goes to the manager",
    "PROPLET_OTEL_URL": _NO_TRACES,
    "PROPLET_TRACE_RATIO": _NO_TRACES,
}

_HARMLESS = {
    "MANAGER_STORAGE_TYPE": {"sqlite"},
    "MANAGER_TRACE_RATIO": {"0"},
    "PROXY_TRACE_RATIO": {"0"},
    "PROPLET_TRACE_RATIO": {"0"},
    "PROPLET_HAL_ENABLED": {"false", "0"},
    "PROPLET_HTTP_ENABLED": {"false", "0"},
    "PROPLET_USB_ENABLED": {"false", "0"},
    "PROPLET_METRICS_ENABLED": {"false", "0"},
    "PROPLET_HTTP_TLS_INSECURE_SKIP_VERIFY": {"false", "0"},
}
"""Values that ask for what is done anyway."""


_LIKE = 0.9
"""How like a setting a variable must be: environments have many that are rightly for others."""

_OF_SEVERAL = re.compile(r"_\d+_")
"""Of one of several proplets, as ``PROPLET_2_CLIENT_ID``."""


def warn_of_unsupported_variables(
    unsupported: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> None:
    """Log a warning for each of these variables that is set and would change something; values are not shown."""
    for name, instead in unsupported.items():
        value = environment.get(name, "").strip()
        if value and value.lower() not in _HARMLESS.get(name, ()):
            log.warning("variable of absmach/propeller is not read here", variable=name, instead=instead)


def warn_of_misspelt_variables(
    settings: type[ServiceSettings], also_read: Iterable[str], environment: Mapping[str, str] = os.environ
) -> None:
    """Log a warning for each variable that begins as the service's settings do, is none, and is nearly one that is not set.

    Args:
        settings: of the service.
        also_read: variables of the service that are no fields of them, or known as not read.
        environment: the variables; values are not shown.
    """
    known = {name for field in settings.model_fields.values() for name in _names_of(field)} | set(also_read)
    begins = tuple({f"{name.partition('_')[0]}_" for name in known} - {"PROPELLER_"})
    unset = [name for name in known if not environment.get(name)]
    for name in sorted(set(environment) - known):
        if not name.startswith(begins) or _OF_SEVERAL.search(name) or not environment[name]:
            continue
        for meant in nearest_names(name[:128], unset, likeness=_LIKE)[:1]:
            log.warning("variable is not read", variable=name[:128], did_you_mean=meant)


def _names_of(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [one for one in choices if isinstance(one, str)]
