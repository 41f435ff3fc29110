"""Errors that more than one floor must know."""


class BusyError(Exception):
    """What is needed is in use: the same again may succeed later (HTTP 503)."""
