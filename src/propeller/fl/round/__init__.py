"""A federated round as a state machine: an event in, the new round and the effects out. No I/O, no clock.

    created → collecting → aggregating → completed | failed(reason)

Synchronous federated averaging with partial participation (McMahan et al. 2017, algorithm 1): the server waits for
``k_of_n`` updates of the participants, until a deadline, or until no update can come any more because every participant
whose update is missing has failed. A round of evaluation, and a wave of an asynchronous experiment, is the same, but
completes with what has come: nothing is aggregated. Who takes part may be known from the start, or be chosen after the round was created.

``step`` is the whole of it. Whoever calls it carries out the effects in their
order: ``Persist`` stands before what others may see, so that nothing is answered, aggregated or published that a crash
could take back. Events that have no meaning in a state change nothing, so each may come twice.
"""

from propeller.fl.round.events import (
    Aggregate,
    AggregateStored,
    AggregationFailed,
    AnnounceVersion,
    Answer,
    ChoiceFailed,
    DeadlinePassed,
    Effect,
    Event,
    ParticipantFailed,
    ParticipantsChosen,
    ParticipantsReported,
    Persist,
    RetryRequested,
    RoundCancelled,
    RoundConfigured,
    Transition,
    UpdateReceived,
    UpdatesLeftOut,
)
from propeller.fl.round.machine import admit, resume, step
from propeller.fl.round.state import Round, RoundPlan, RoundState, Verdict

__all__ = [
    "Aggregate",
    "AggregateStored",
    "AggregationFailed",
    "AnnounceVersion",
    "Answer",
    "ChoiceFailed",
    "DeadlinePassed",
    "Effect",
    "Event",
    "ParticipantFailed",
    "ParticipantsChosen",
    "ParticipantsReported",
    "Persist",
    "RetryRequested",
    "Round",
    "RoundCancelled",
    "RoundConfigured",
    "RoundPlan",
    "RoundState",
    "Transition",
    "UpdateReceived",
    "UpdatesLeftOut",
    "Verdict",
    "admit",
    "resume",
    "step",
]
