"""The limit of request bodies where no setting says another; here, as some read settings and bodies without serving HTTP."""

MAX_BODY = 100 * 1024 * 1024
"""Bytes."""
