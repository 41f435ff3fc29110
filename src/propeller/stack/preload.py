"""Imported once by the process that services are forked from: their imports are then paid for all of them."""

import propeller.aggregator.main
import propeller.cli
import propeller.coordinator.main
import propeller.data_store.main
import propeller.identity.main
import propeller.manager.main
import propeller.model_registry.main
import propeller.mqtt.broker_main
import propeller.oci.registry_main
import propeller.proxy.main  # noqa: F401
