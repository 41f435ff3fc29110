"""An experiment as a state machine over its rounds: an event in, the new experiment and the effects out.

    queued → running → completed | stopped | failed(reason), and paused meanwhile

One that is resumed is queued again, unless a round of it is still open.

It decides what is next, a round of training, an evaluation or the end, from what has happened, and has at most one
round open; an asynchronous one also has waves (``waves``), whose updates its rounds merge. Whoever calls ``step``
carries out the effects in their order. ``Persist`` stands first: the new experiment and the reports are stored in one
transaction before anything is started, so after a crash ``resume`` gives what is to be done again. Rounds have
deterministic ids and contents, so starting one again changes nothing. Events about rounds that are not open, and
requests that are fulfilled already, change nothing, so each may come twice and late.

No I/O and no clock: events say when they happened (``at``, in seconds, from any origin).
"""

from propeller.fl.experiment.events import (
    Admitted,
    CancelRound,
    CannotGoOn,
    Effect,
    EvaluateCentrally,
    Event,
    MarkBest,
    MarkLatest,
    MergeUpdates,
    PauseRequested,
    Persist,
    Report,
    Request,
    ResumeRequested,
    RoundEnded,
    RoundRefused,
    StartRound,
    StopRequested,
    TimePassed,
    Transition,
    WaveChanged,
)
from propeller.fl.experiment.machine import refusal, resume, step
from propeller.fl.experiment.needs import (
    check_names,
    check_strategy,
    explain_missing_functions,
    fewest_updates,
)
from propeller.fl.experiment.requests import MergedUpdate, MergeRequest, RoundRequest, round_id, wave_id
from propeller.fl.experiment.state import Best, BufferedUpdate, Experiment, ExperimentState, OpenRound, Wave

__all__ = [
    "Admitted",
    "Best",
    "BufferedUpdate",
    "CancelRound",
    "CannotGoOn",
    "Effect",
    "EvaluateCentrally",
    "Event",
    "Experiment",
    "ExperimentState",
    "MarkBest",
    "MarkLatest",
    "MergeRequest",
    "MergeUpdates",
    "MergedUpdate",
    "OpenRound",
    "PauseRequested",
    "Persist",
    "Report",
    "Request",
    "ResumeRequested",
    "RoundEnded",
    "RoundRefused",
    "RoundRequest",
    "StartRound",
    "StopRequested",
    "TimePassed",
    "Transition",
    "Wave",
    "WaveChanged",
    "check_names",
    "check_strategy",
    "explain_missing_functions",
    "fewest_updates",
    "refusal",
    "resume",
    "round_id",
    "step",
    "wave_id",
]
