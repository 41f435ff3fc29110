"""MQTT 3.1.1: the session that services and devices keep, and the embedded broker."""
