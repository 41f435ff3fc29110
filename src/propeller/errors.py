"""The kinds of errors: what went wrong, whatever transport it is reported over.

Every error that is reported to a person or another service derives from one of these. ``web`` answers each kind with its HTTP
status, handlers of MQTT messages try again where ``temporary`` says that this may help, the command line prints the text.
A text says what is wrong and what to do about it, and holds no secret.
"""


class PropellerError(Exception):
    """An error that is reported to the caller: its text is for a person.

    Attributes:
        temporary: whether the same request may succeed later without a change.
    """

    temporary: bool = False

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class InvalidError(PropellerError, ValueError):
    """The input is wrong; the text names the field."""


class TooLargeError(InvalidError):
    """The input is over a limit."""


class UnsupportedTypeError(InvalidError):
    """The input has a media type that is not supported."""


class NotAcceptableError(InvalidError):
    """None of the media types that the caller accepts is supported."""


class UnprocessableError(InvalidError):
    """The input is well-formed, but does not fit what is stored here."""


class NotFoundError(PropellerError, LookupError):
    """There is no such thing."""


class ConflictError(PropellerError):
    """The request contradicts what exists already, or the state that it is in."""


class RefusedError(PropellerError):
    """The caller may not do this."""


class UnauthenticatedError(RefusedError):
    """It is not known who calls: credentials are missing or wrong."""


class UnavailableError(PropellerError):
    """Something that is needed cannot be reached or is in use: the same request may succeed later."""

    temporary = True


class ThrottledError(UnavailableError):
    """The caller has asked too often.

    Attributes:
        retry_after_s: when to ask again, in seconds.
    """

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class StartError(PropellerError):
    """A service or a command cannot start; the text says what is wrong and what to do."""
