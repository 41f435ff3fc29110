"""``propeller run``: submit the experiment of a file, and follow it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from propeller.cli.connection import Target
from propeller.cli.experiment_file import ExperimentFile
from propeller.cli.follow import follow
from propeller.cli.terminal import Terminal, escape
from propeller.sdk.experiment import new_id


def run_experiment(
    file: Path,
    target: Target,
    *,
    changes: Sequence[str] = (),
    image: str | None = None,
    rounds: int | None = None,
    detach: bool = False,
    as_json: bool = False,
) -> None:
    """Store data and the first model, submit the experiment, and show what happens until it is over.

    Args:
        file: the experiment.
        target: the stack.
        changes: fields that get another value, as ``lr=0.1``.
        image: the program, instead of the file's.
        rounds: how many, instead of the file's.
        detach: only submit it.
        as_json: print JSON alone: the events, or with ``detach`` the experiment.

    Raises:
        PropellerError: a field is wrong, or the experiment failed; the text has the reason.
    """
    replaced = [f"program={image}"] if image is not None else []
    replaced += [f"rounds={rounds}"] if rounds is not None else []
    described = ExperimentFile.load(file, [*changes, *replaced])
    if described.notes:
        print(f"{file}: {'; '.join(described.notes)}: the old names are still read", file=sys.stderr)
    if described.evaluates_on_training_data:
        print(
            f"{file}: evaluate: devices evaluate on what they train on, as nothing is held out: add data.split = "
            "{ holdout = 0.2 }, unless the program splits its data itself",
            file=sys.stderr,
        )
    experiment, console = described.to_experiment(), Terminal()
    spec = experiment.spec
    if spec.id is None:  # one that can be told when it is interrupted
        experiment = replace(experiment, id=new_id(spec.name))
    with target.connect() as fl:
        try:
            handle = fl.run(experiment)
        except KeyboardInterrupt:
            show = target.command("experiment", "show", str(experiment.id))
            print(f"\nInterrupted while it was submitted. Whether it runs: {show}", file=sys.stderr)
            raise
        if as_json:
            if detach:
                print(json.dumps(handle.status()))
                return
        else:
            strategy = spec.strategy.name or spec.strategy.program
            count = f"{spec.rounds} round{'' if spec.rounds == 1 else 's'}"
            console.print(
                f"Experiment {handle.id}: {escape(spec.program)}, {count} of {escape(str(strategy))}",
                soft_wrap=True,
            )
        if detach:
            console.print(f"  follow it: {target.command('experiment', 'follow', handle.id)}", soft_wrap=True)
            console.print(f"  end it:    {target.command('experiment', 'stop', handle.id)}", soft_wrap=True)
            return
        follow(fl, handle, target, rounds=spec.rounds, as_json=as_json, console=console)
