"""The kinds of errors: what went wrong, without saying over which transport that is told.

Every error that a person or another service is told derives from one of these. ``web`` answers each kind with its HTTP
status, handlers of MQTT messages try again where ``temporary`` says that this may help, the command line prints the text.
A text says what is wrong and what to do about it, and holds no secret.
"""


class PropellerError(Exception):
    """What can be told to whoever asked: the text is for a person.

    Attributes:
        temporary: whether the same request may succeed later without a change.
    """

    temporary: bool = False

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class InvalidError(PropellerError, ValueError):
    """What was given is wrong; the text names the field."""


class TooLargeError(InvalidError):
    """What was given is over a limit."""


class UnsupportedTypeError(InvalidError):
    """What was given is in a media type that is not read here."""


class NotAcceptableError(InvalidError):
    """None of the media types that the caller takes is written here."""


class UnprocessableError(InvalidError):
    """What was given is well-formed, and does not fit what is here."""


class NotFoundError(PropellerError, LookupError):
    """There is no such thing."""


class ConflictError(PropellerError):
    """It contradicts what is here already, or the state that it is in."""


class RefusedError(PropellerError):
    """Whoever asks may not do this."""


class UnauthenticatedError(RefusedError):
    """It is not known who asks: credentials are missing or wrong."""


class UnavailableError(PropellerError):
    """Something that is needed is away or in use: the same request may succeed later."""

    temporary = True


class ThrottledError(UnavailableError):
    """Whoever asks has asked too often.

    Attributes:
        retry_after_s: when to ask again, in seconds.
    """

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)
