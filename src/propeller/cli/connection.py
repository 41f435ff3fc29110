"""Which stack a command is about: one on this machine, or one elsewhere."""

import getpass
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from propeller.cli.options import DEFAULT_STATE
from propeller.errors import StartError
from propeller.sdk import Propeller

PASSWORD_VARIABLE = "PROPELLER_PASSWORD"  # noqa: S105 - its name


@dataclass(frozen=True)
class Target:
    """A stack as the command line names it.

    Attributes:
        state: the state folder of one on this machine.
        url: the host of one elsewhere, which then counts.
        user: who calls there.
    """

    state: Path = DEFAULT_STATE
    url: str | None = None
    user: str | None = None

    def connect(self) -> Propeller:
        """A client of it.

        Raises:
            PropellerError: no stack runs there, or the options contradict each other.
        """
        if self.url is None:
            if self.user is not None:
                raise StartError("--user is only for --url: a stack on this machine is used as its operator")
            return Propeller.from_state(self.state)
        if self.user is None:
            return Propeller(url=self.url)
        return Propeller(url=self.url, user=self.user, password=_password(self.user))

    def command(self, *words: str) -> str:
        """A command about the same stack, as a person types it."""
        options = []
        if self.url is not None:
            options += ["--url", self.url] + ([] if self.user is None else ["--user", self.user])
        elif self.state != DEFAULT_STATE:
            options += ["--state", str(self.state)]
        return shlex.join(["propeller", *words, *options])


def _password(user: str) -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise StartError(f"--user: no password; set {PASSWORD_VARIABLE}")
    return getpass.getpass(f"Password of {user}: ")
