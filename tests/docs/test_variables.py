"""Every variable that absmach/propeller's services read: read here, or known as not read and documented so."""

import json

import pytest
from structlog.testing import capture_logs

from docs.test_reference import BESIDE_SETTINGS, names_of, section, spans
from propeller.stack.services import SERVICES, find_service
from propeller.stack.unread_variables import (
    MANAGER,
    warn_of_misspelt_variables,
    warn_of_unsupported_variables,
)

_IDENTITY = "DOMAIN_ID CHANNEL_ID CLIENT_ID CLIENT_KEY TENANT_ID ENTITY_ID API_KEY"
_TLS = "MQTT_TLS_CA_CERT MQTT_TLS_CLIENT_CERT MQTT_TLS_CLIENT_KEY MQTT_TLS_INSECURE_SKIP_VERIFY"
_SHARED = f"LOG_LEVEL INSTANCE_ID MQTT_ADDRESS MQTT_QOS MQTT_TIMEOUT OTEL_URL TRACE_RATIO {_IDENTITY} {_TLS}"

THEIRS = {
    "manager": f"""{_SHARED} HTTP_HOST HTTP_PORT HTTP_SERVER_CERT HTTP_SERVER_KEY HTTP_SERVER_READ_TIMEOUT
        HTTP_SERVER_WRITE_TIMEOUT HTTP_SERVER_READ_HEADER_TIMEOUT HTTP_SERVER_IDLE_TIMEOUT HTTP_SERVER_MAX_HEADER_BYTES
        COORDINATOR_URL PLUGIN_DIR STORAGE_TYPE POSTGRES_HOST POSTGRES_PORT POSTGRES_USER POSTGRES_PASS POSTGRES_DB
        POSTGRES_SSLMODE SQLITE_PATH BADGER_PATH""",
    "proxy": f"""{_SHARED} CHUNK_SIZE AUTHENTICATE REGISTRY_TOKEN REGISTRY_USERNAME REGISTRY_PASSWORD REGISTRY_URL
        HTTP_PORT""",
    "proplet": f"""{_SHARED} MQTT_KEEP_ALIVE MQTT_MAX_PACKET_SIZE MQTT_INFLIGHT MQTT_REQUEST_CHANNEL_CAPACITY
        LIVELINESS_INTERVAL METRICS_INTERVAL ENABLE_MONITORING MANAGER_K8S_NAMESPACE EXTERNAL_WASM_RUNTIME CONFIG_FILE
        CONFIG_SECTION KBS_URI AA_CONFIG_PATH LAYER_STORE_PATH PULL_CONCURRENT_LIMIT HTTP_TLS_CA_CERT
        HTTP_TLS_INSECURE_SKIP_VERIFY HAL_ENABLED HTTP_ENABLED USB_ENABLED HTTP_PROXY_PORT DIRS DESCRIPTION TAGS
        LOCATION COLLECT_SYSTEM_INFO PLUGIN_DIR METRICS_PORT METRICS_ENABLED""",
}
"""Service → its variables in both versions, without the service's prefix."""

UNPREFIXED = {
    "manager": {"COORDINATOR_URL", "JOB_EXECUTION_MODE"},
    "proplet": {"MODEL_REGISTRY_URL", "DATA_STORE_URL", "COORDINATOR_URL", "MANAGER_COORDINATOR_URL"},
    "coordinator": {
        "COORDINATOR_PORT", "MODEL_REGISTRY_URL", "AGGREGATOR_URL", "MQTT_BROKER", "MQTT_CLIENT_ID", "MQTT_ENTITY_ID",
        "MQTT_USERNAME", "MQTT_PASSWORD",
    },
    "model-registry": {"REGISTRY_PORT", "MODELS_DIR"},
    "aggregator": {"AGGREGATOR_PORT"},
    "data-store": {"DATA_STORE_PORT", "DATA_DIR", "FL_DATASET_PARTICIPANTS"},
}  # fmt: skip


def theirs(service: str) -> set[str]:
    prefixed = {f"{service.upper()}_{name}" for name in THEIRS.get(service, "").split()}
    return prefixed | UNPREFIXED.get(service, set())


def ours(service: str) -> set[str]:
    spec = find_service(service)
    fields = spec.load_settings_class().model_fields.values()
    return {name for field in fields for name in names_of(field)} | {spec.log_level_variable}


@pytest.mark.parametrize("service", sorted({*THEIRS, *UNPREFIXED}))
def test_each_of_their_variables_is_read_or_known_as_not_read(service: str) -> None:
    read, unsupported = ours(service) | BESIDE_SETTINGS, set(find_service(service).unsupported)
    assert theirs(service) <= read | unsupported
    assert not read & unsupported
    assert unsupported <= theirs(service)


def test_what_is_not_read_is_documented_with_what_holds_instead() -> None:
    text = section("## Variables that are not read")
    documented = {span for span in spans(text) if span.isupper()}
    assert documented == {name for spec in SERVICES for name in spec.unsupported}
    for instead in (instead for spec in SERVICES for instead in spec.unsupported.values()):
        assert instead in text


def test_who_sets_one_in_vain_is_told_once_and_without_its_value() -> None:
    environment = {
        "MANAGER_OTEL_URL": "http://user:secret@collector",
        "MANAGER_TRACE_RATIO": "0",
        "MANAGER_STORAGE_TYPE": "postgres",
        "MANAGER_PLUGIN_DIR": "",
        "PROXY_OTEL_URL": "http://collector",
    }
    with capture_logs() as logs:
        warn_of_unsupported_variables(MANAGER, environment)
    assert [line["variable"] for line in logs] == ["MANAGER_OTEL_URL", "MANAGER_STORAGE_TYPE"]
    assert {line["log_level"] for line in logs} == {"warning"}
    assert "secret" not in json.dumps(logs)


def test_who_misspells_a_setting_is_told_which_it_may_be() -> None:
    spec = find_service("proplet")
    environment = {
        "PROPLET_TASK_MEMROY": "secret",
        "PROPLET_TASK_WALLTIME": "5",
        "PROPLET_TASK_FUEL": "5",
        "PROPLET_TASK_FUELS": "5",  # the one that it may be is set
        "PROPLET_2_CLIENT_ID": "of another proplet",
        "PROPLET_TASK_OUT_BYTE": "",
        "MANAGER_HTTP_PROT": "of another service",
        "PATH": "/bin",
    }
    with capture_logs() as logs:
        warn_of_misspelt_variables(spec.load_settings_class(), spec.unsupported, environment)
    assert {line["variable"]: line["did_you_mean"] for line in logs} == {
        "PROPLET_TASK_MEMROY": "PROPLET_TASK_MEMORY",
        "PROPLET_TASK_WALLTIME": "PROPLET_TASK_WALL_TIME",
    }
    assert "secret" not in json.dumps(logs)


@pytest.mark.parametrize("service", [spec.name for spec in SERVICES])
def test_no_variable_of_a_service_is_taken_for_a_misspelt_one_of_another(service: str) -> None:
    spec = find_service(service)
    others = {name for one in SERVICES for name in ours(one.name)} - ours(service)
    theirs_too = {name for one in SERVICES for name in (*one.unsupported, *theirs(one.name))}
    with capture_logs() as logs:
        warn_of_misspelt_variables(
            spec.load_settings_class(), spec.unsupported, dict.fromkeys(others | theirs_too, "x")
        )
    assert logs == []
