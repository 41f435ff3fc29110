"""TLS to a broker: the settings that every client of one reads, and the context they stand for."""

import ssl
from collections.abc import Callable
from pathlib import Path

from propeller.errors import StartError
from propeller.mqtt.address import BrokerAddress
from propeller.process.logs import get_logger
from propeller.process.settings import ServiceSettings
from propeller.process.tls import pair, stack_trust, trust

log = get_logger("mqtt")


def variable_names(prefix: str) -> Callable[[str], str]:
    """How the fields below are named in a service's environment: the prefix, then the field in upper case."""
    return lambda field: f"{prefix}{field.upper()}"


class MqttTlsSettings(ServiceSettings):
    """Base of the settings of services that are clients of a broker.

    A service that derives from it sets ``alias_generator=variable_names("MANAGER_")`` in its ``model_config``; its variables
    are then ``MANAGER_MQTT_TLS_CA_CERT`` and so on, as in absmach/propeller.
    """

    mqtt_tls_ca_cert: Path | None = None
    """The certificates (PEM) that the broker's must be signed by; else those of ``PROPELLER_CA_CERT``, else those that the system trusts."""
    mqtt_tls_client_cert: Path | None = None
    """With the key: shown to a broker that asks clients for a certificate (PEM)."""
    mqtt_tls_client_key: Path | None = None
    mqtt_tls_insecure_skip_verify: bool = False
    """Take any certificate: only for looking for a fault, as anyone can then pose as the broker."""

    def tls_context(self, address: BrokerAddress) -> ssl.SSLContext | None:
        """How to connect to a broker with TLS; ``None`` if its address is without.

        Raises:
            StartError: a file cannot be used, or files are set for a connection without TLS.
        """
        ca, cert, key = self.mqtt_tls_ca_cert, self.mqtt_tls_client_cert, self.mqtt_tls_client_key
        names = {
            name: _variable(type(self), f"mqtt_tls_{name}")
            for name in ("ca_cert", "client_cert", "client_key")
        }
        if not address.tls:
            for name, given in (("ca_cert", ca), ("client_cert", cert), ("client_key", key)):
                if given is not None:
                    raise StartError(
                        f"{names[name]} is set, but the broker's address {address} is without TLS; "
                        f"write mqtts://{address.host}:8883, or unset it"
                    )
            return None
        shown = pair(cert, key, names["client_cert"], names["client_key"])
        context = (
            trust(ca, names["ca_cert"]) if ca is not None else stack_trust() or ssl.create_default_context()
        )
        if self.mqtt_tls_insecure_skip_verify:
            log.warning("the broker's certificate is not checked: anyone can pose as it", broker=str(address))
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if shown is not None:
            shown.load_into(context)
        return context


def _variable(settings: type[ServiceSettings], field: str) -> str:
    return str(settings.model_fields[field].alias)
