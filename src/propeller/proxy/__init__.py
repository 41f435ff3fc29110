"""The proxy: fetches programs from OCI registries and hands them to proplets over MQTT."""
