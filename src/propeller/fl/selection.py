"""Who takes part in a round: a pure choice from the devices that are there, a policy and a seed.

Nothing random depends on ids: devices are sorted by name, as people count, and positions in that order are drawn. So a
fleet whose ids are new, as after a reinstallation or in a simulation, is chosen from in the same way. Only devices that
have the same name are sorted by id.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType

from propeller.errors import UnavailableError, UnprocessableError
from propeller.protocol.selection import RoundKind, SelectionPolicy
from propeller.protocol.strict import nearest_names

MAX_LISTED = 10
"""The most devices or tags that an error lists."""

_TEXT_AND_NUMBER = re.compile(r"([^0-9]*)([0-9]*)")


@dataclass(frozen=True)
class Candidate:
    """A device that is there and could take part; ``keeps_state``: programs can keep something on it from round to round."""

    id: str
    name: str
    tags: frozenset[str] = frozenset()
    keeps_state: bool = True

    @cached_property
    def order(self) -> tuple[tuple[tuple[str, int, str], ...], str, str]:
        """The key that sorts devices: by name as people do, and of the same name by id."""
        return natural_order(self.name), self.name, self.id


@dataclass(frozen=True)
class Draw:
    """Which choice of an experiment it is: each round, attempt and kind draws anew."""

    number: int
    attempt: int = 1
    kind: RoundKind = "train"


@dataclass(frozen=True)
class Chosen:
    """The participants of a round.

    Attributes:
        ids: in the order of their slots, which is the natural order of their names.
        surplus: how many of them were chosen beyond those needed; so many may fail or be late.
    """

    ids: tuple[str, ...]
    surplus: int = 0


class NotEnoughError(UnavailableError):
    """Too few devices are there; more may come. The text says how many of which are missing.

    Attributes:
        needed: how many must be there.
        available: how many are.
    """

    def __init__(self, reason: str, needed: int, available: int) -> None:
        self.needed, self.available = needed, available
        super().__init__(reason)


def natural_order(name: str) -> tuple[tuple[str, int, str], ...]:
    """The key that sorts names as people do, numbers in them by their value: ``proplet-2`` before ``proplet-10``."""
    parts = [(text, digits.lstrip("0")) for text, digits in _TEXT_AND_NUMBER.findall(name)]
    return tuple((text, len(number), number) for text, number in parts)  # int() refuses very long numbers


def select(
    candidates: Iterable[Candidate],
    policy: SelectionPolicy,
    draw: Draw,
    *,
    resting: Sequence[str] = (),
    lacking: Mapping[str, str] = MappingProxyType({}),
) -> Chosen:
    """Choose the participants of a round.

    Those that have just failed (``policy.exclude``) are taken last, and before them those that took part within the
    last ``policy.cooldown_rounds`` rounds: only where too few others are there. If all have failed, for the same cause most
    likely, none is left out: the next try is of all of them again, and its reason tells of all of them. A fraction that is less than
    ``policy.min_chosen`` gives that many.

    Args:
        candidates: the devices that may be chosen.
        policy: of the choice.
        draw: which choice of the experiment this is.
        resting: names of devices that are alive and let no task begin now, to be told where too few are there.
        lacking: by name, what devices that are alive lack of what the program requires; to be told likewise.

    Raises:
        NotEnoughError: too few fit the policy; the text says who is missing, and names near to those that are unknown.
        UnprocessableError: it needs device state, which devices that are named, or too many of the others, do not have.
    """
    there = sorted(candidates, key=lambda one: one.order)
    ids = frozenset(one.id for one in there)
    fitting = [one for one in there if _fits(one, policy, ids)]
    busy = frozenset(policy.busy)
    needed = max(_min_available(policy), policy.min_chosen)
    if policy.device_state:
        fitting = _require_state(fitting, policy, needed)
    pool = [one for one in fitting if one.id not in busy]
    is_named_missing = policy.names is not None and _needs_all(policy) and _unknown_names(there, policy)
    if len(fitting) < needed or is_named_missing:
        reason = _explain_too_few(there, fitting, policy, needed, resting, lacking)
        raise NotEnoughError(reason, needed, len(fitting))
    if len(pool) < policy.min_chosen:
        reason = f"all {len(fitting)} devices that are there take part in another round of the experiment"
        raise NotEnoughError(reason, policy.min_chosen, len(pool))
    reluctance = _reluctance(pool, policy, draw.number)
    order = sorted(
        range(len(pool)), key=lambda position: (reluctance[position], _draw(policy.seed, draw, position))
    )
    willing = len(pool) - reluctance.count(_EXCLUDED)
    wanted = min(_wanted(policy, len(pool), willing, needed), len(pool))
    with_surplus = math.ceil((1 + _exact(policy.over_select)) * wanted)
    asked = max(wanted, min(willing, with_surplus))
    return Chosen(tuple(pool[position].id for position in sorted(order[:asked])), asked - wanted)


def explain_unknown_devices(known: Iterable[Candidate], policy: SelectionPolicy) -> str | None:
    """What is wrong with ``policy.names`` where it names devices that there never were; ``None``: each is known.

    Args:
        known: every device that ever was there, alive or not.
        policy: of the choice.
    """
    every = list(known)
    unknown = _unknown_names(every, policy)
    if not unknown:
        return None
    names = sorted({one.name for one in every}, key=natural_order)
    ids = [one.id for one in every]
    reasons = []
    for name in unknown[:MAX_LISTED]:
        near = nearest_names(name, [*names, *ids])
        hint = (
            f"did you mean {near[0]!r}?" if near else _list(names, "there are") if names else "there is none"
        )
        reasons.append(f"there is no device {name!r}; {hint}")
    more = f"; and {len(unknown) - MAX_LISTED} more" if len(unknown) > MAX_LISTED else ""
    return f"selection.names: {'; '.join(reasons)}{more}"


def slot_seed(seed: int, number: int, slot: int) -> int:
    """The seed of one participant in one round: the first 63 bits of SHA-256 of ``seed:number:slot``.

    Args:
        seed: of the experiment (``selection.seed``).
        number: of the round.
        slot: of the participant in the round, from 0.
    """
    digest = hashlib.sha256(f"{seed}:{number}:{slot}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


_FRESH, _RESTING, _EXCLUDED = range(3)


def _reluctance(pool: Sequence[Candidate], policy: SelectionPolicy, number: int) -> list[int]:
    """For each device whether it is fresh, resting or excluded: the lower, the sooner it is taken.

    Where all of them have failed, that says nothing about any of them, and none is excluded; but ``up_to`` a number of
    devices need not be any.
    """
    excluded = frozenset(policy.exclude)
    if policy.up_to is None and excluded.issuperset(one.id for one in pool):
        excluded = frozenset()
    resting = {id_ for id_, last in policy.last_rounds.items() if number - last <= policy.cooldown_rounds}
    return [_EXCLUDED if one.id in excluded else _RESTING if one.id in resting else _FRESH for one in pool]


def _draw(seed: int, draw: Draw, position: int) -> bytes:
    # A hash and not ``random.shuffle``, whose order Python may change between versions.
    return hashlib.sha256(f"{seed}:{draw.kind}:{draw.number}:{draw.attempt}:{position}".encode()).digest()


def _needs_all(policy: SelectionPolicy) -> bool:
    """Whether each of the named devices must be there."""
    free = (policy.min_available, policy.count, policy.fraction, policy.up_to)
    return all(value is None for value in free)


def _unknown_names(there: Sequence[Candidate], policy: SelectionPolicy) -> list[str]:
    known = {name for one in there for name in (one.name, one.id)}
    return [name for name in policy.names or () if name not in known]


def _fits(one: Candidate, policy: SelectionPolicy, ids: frozenset[str]) -> bool:
    """Whether the policy is about it. What is an id of ``ids`` is no name: a device that calls itself so is not meant."""
    named = (
        policy.names is None or one.id in policy.names or (one.name in policy.names and one.name not in ids)
    )
    return named and one.tags.issuperset(policy.tags)


def _require_state(fitting: Sequence[Candidate], policy: SelectionPolicy, needed: int) -> list[Candidate]:
    """Those on which programs can keep something; the others are left out, unless they are named or there are too few without."""
    able = [one for one in fitting if one.keeps_state]
    unable = [one.name for one in fitting if not one.keeps_state]
    if unable and (policy.names is not None or len(able) < needed <= len(fitting)):
        raise UnprocessableError(
            f"strategy: it needs device state, which {len(unable)} of {len(fitting)} devices do not have "
            f"({_list(unable, 'without')}): leave them out with selection.names or selection.tags, set "
            "PROPLET_TASK_STATE_BYTES above 0 on them if it is 0 (proplets of absmach/propeller keep no state), or choose "
            "another strategy"
        )
    return able


def _min_available(policy: SelectionPolicy) -> int:
    if policy.min_available is not None:
        return max(policy.min_available, policy.count or 1)
    if policy.count is not None:
        return policy.count
    return len(policy.names) if policy.names is not None and _needs_all(policy) else 1


def _wanted(policy: SelectionPolicy, available: int, willing: int, needed: int) -> int:
    """How many are needed; all that are there, unless they have just failed, if the policy does not say."""
    if policy.count is not None:
        return policy.count
    if policy.fraction is not None:
        return max(math.ceil(_exact(policy.fraction) * available), policy.min_chosen)
    if policy.up_to is not None:
        return max(min(policy.up_to, willing), policy.min_chosen)
    return max(willing, needed)


def _exact(number: float) -> Fraction:
    """The decimal number that a person wrote: 0.07 of 100 devices are 7, not ``ceil(7.000000000000001)``."""
    return Fraction(repr(number))


def _explain_too_few(
    there: Sequence[Candidate],
    pool: Sequence[Candidate],
    policy: SelectionPolicy,
    needed: int,
    resting: Sequence[str],
    lacking: Mapping[str, str],
) -> str:
    reasons = [f"{needed} device{'s' if needed != 1 else ''} needed, {len(pool)} there"]
    reasons += _explain_names(there, policy, frozenset(lacking))
    reasons += _explain_tags(there, policy)
    if pool:
        reasons.append(_list([one.name for one in pool], "there"))
    elif not there and not resting and not lacking:
        reasons.append("no device is alive")
    if resting:
        why = (
            "alive, but by PROPLET_POLICY (its hours, or a mistake that the log tells) no task begins now on"
        )
        reasons.append(_list(sorted(resting, key=natural_order), why))
    if lacking:
        reasons.append(explain_lacking(lacking))
        reasons.append("a device tells what it has when it starts: install it there, and restart it")
    return "; ".join(reasons)


def explain_lacking(lacking: Mapping[str, str]) -> str:
    """Which devices are left out, as they lack what the program requires, and what that is."""
    told = [f"{name} ({lacking[name]})" for name in sorted(lacking, key=natural_order)]
    return _list(told, "alive, but without what the program requires")


def _explain_names(there: Sequence[Candidate], policy: SelectionPolicy, lacking: frozenset[str]) -> list[str]:
    missing = [name for name in _unknown_names(there, policy) if name not in lacking]
    reasons = []
    for name in missing[:MAX_LISTED]:
        near = nearest_names(name, sorted({one.name for one in there}))
        reasons.append(
            f"selection.names: no device {name!r} is alive" + (f", but {near[0]!r} is" if near else "")
        )
    if len(missing) > MAX_LISTED:
        reasons.append(f"and {len(missing) - MAX_LISTED} more")
    return reasons


def _explain_tags(there: Sequence[Candidate], policy: SelectionPolicy) -> list[str]:
    counts = {tag: sum(tag in one.tags for one in there) for tag in policy.tags}
    known = sorted({tag for one in there for tag in one.tags})
    reasons = []
    for tag, count in counts.items():
        if count:
            continue
        near = nearest_names(tag, known)
        hint = f"; did you mean {near[0]!r}?" if near else f", {_list(known, 'there are')}" if known else ""
        reasons.append(f"selection.tags: no device that is alive has {tag!r}{hint}")
    if policy.tags and all(counts.values()):
        reasons.append(f"selection.tags: too few devices have {' and '.join(map(repr, policy.tags))}")
    return reasons


def _list(names: Sequence[str], lead: str) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{lead}: {', '.join(names[:MAX_LISTED])}{more}"
