"""The limit of request bodies where no setting says another; here, as some read settings and bodies without serving HTTP."""

MAX_BODY = 100 * 1024 * 1024
"""Bytes."""

BODIES_OF_A_CALLER = 256 * 1024 * 1024
"""What the bodies of one caller's requests may take in memory at once, in bytes."""

BODIES_OF_ANYONE = 1024 * 1024 * 1024
"""The same of all who come from one address, where it is not known who calls."""
