"""Variables that no service reads and that are nearly one which is: whoever sets one is told so when the service starts."""

import os
import re
from collections.abc import Iterable, Mapping

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from propeller.process.logs import get_logger
from propeller.process.settings import ServiceSettings
from propeller.protocol.strict import nearest_names

log = get_logger("settings")

_LIKE = 0.9
"""How like a setting a variable must be: environments have many that are rightly for others."""

_OF_SEVERAL = re.compile(r"_\d+_")
"""Of one of several proplets, as ``PROPLET_2_CLIENT_ID``."""


def warn_of_misspelt_variables(
    settings: type[ServiceSettings], also_read: Iterable[str], environment: Mapping[str, str] = os.environ
) -> None:
    """Log a warning for each variable that begins as the service's settings do, is none, and is nearly one that is not set.

    Args:
        settings: of the service.
        also_read: variables of the service that are no fields of them, or known as not read.
        environment: the variables; values are not shown.
    """
    known = {name for field in settings.model_fields.values() for name in _names_of(field)} | set(also_read)
    begins = tuple({f"{name.partition('_')[0]}_" for name in known} - {"PROPELLER_"})
    unset = [name for name in known if not environment.get(name)]
    for name in sorted(set(environment) - known):
        if not name.startswith(begins) or _OF_SEVERAL.search(name) or not environment[name]:
            continue
        for meant in nearest_names(name[:128], unset, likeness=_LIKE)[:1]:
            log.warning("variable is not read", variable=name[:128], did_you_mean=meant)


def _names_of(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [one for one in choices if isinstance(one, str)]
