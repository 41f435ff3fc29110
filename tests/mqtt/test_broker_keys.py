"""The keys that broker and identity derive from their secret."""

from propeller.mqtt.broker_keys import BrokerKeys, derive


def test_one_secret_gives_the_same_keys_everywhere() -> None:
    one, two, other = (BrokerKeys.derived(secret) for secret in ("a" * 16, "a" * 16, "b" * 16))
    assert one.issuer_public == two.issuer_public
    assert one.service_seed == two.service_seed
    assert one.issuer_public != other.issuer_public
    assert one.issuer_public[0] == "A"
    assert one.service_public[0] == "U"
    assert derive("a" * 16, "x") != derive("a" * 16, "y")
