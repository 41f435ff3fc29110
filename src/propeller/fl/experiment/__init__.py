"""An experiment as a state machine over its rounds: an event in, the new experiment and the effects out.

    queued → running ⇄ paused → completed | stopped | failed(reason)

It decides what is next, a round of training, an evaluation or the end, from what has happened, and has at most one
round open. Whoever calls ``step`` carries out the effects in their order. ``Persist`` stands first: the new experiment
and the reports are stored in one transaction before anything is started, so after a crash ``resume`` gives what is to
be done again. Rounds have deterministic ids and contents, so starting one again changes nothing. Events about rounds
that are not open, and requests that are fulfilled already, change nothing, so each may come twice and late.

No I/O and no clock: events say when they happened (``at``, in seconds, from any origin).
"""

from propeller.fl.experiment.events import (
    Admitted,
    CancelRound,
    Effect,
    EvaluateCentrally,
    Event,
    MarkBest,
    MarkLatest,
    PauseRequested,
    Persist,
    Report,
    Request,
    ResumeRequested,
    RoundEnded,
    StartRound,
    StopRequested,
    TimePassed,
    Transition,
)
from propeller.fl.experiment.machine import refusal, resume, step
from propeller.fl.experiment.requests import RoundRequest, make_request, round_id
from propeller.fl.experiment.state import Best, Experiment, ExperimentState, OpenRound

__all__ = [
    "Admitted",
    "Best",
    "CancelRound",
    "Effect",
    "EvaluateCentrally",
    "Event",
    "Experiment",
    "ExperimentState",
    "MarkBest",
    "MarkLatest",
    "OpenRound",
    "PauseRequested",
    "Persist",
    "Report",
    "Request",
    "ResumeRequested",
    "RoundEnded",
    "RoundRequest",
    "StartRound",
    "StopRequested",
    "TimePassed",
    "Transition",
    "make_request",
    "refusal",
    "resume",
    "round_id",
    "step",
]
