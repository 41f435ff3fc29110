"""``propeller run``: submit the experiment of a file, and follow it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from propeller.cli.connection import Target
from propeller.cli.experiment_file import ExperimentFile
from propeller.cli.follow import follow
from propeller.cli.prefetch import prefetch_program
from propeller.cli.terminal import FIRST_BUILD, Terminal, escape
from propeller.errors import InvalidError
from propeller.protocol.experiments import default_name
from propeller.sdk import Propeller
from propeller.sdk.experiment import Experiment, new_id


def run_experiment(
    file: Path,
    target: Target,
    *,
    changes: Sequence[str] = (),
    image: str | None = None,
    rounds: int | None = None,
    detach: bool = False,
    as_json: bool = False,
    strict: bool = False,
    prefetch: bool = False,
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
        strict: raise also if it completed although a device failed.
        prefetch: have every device fetch and compile the program before.

    Raises:
        PropellerError: a field is wrong, or the experiment failed; the text has the reason.
    """
    if detach and strict:
        raise InvalidError("--strict: nobody sees how it goes with --detach; leave one of them out")
    replaced = [f"program={image}"] if image is not None else []
    replaced += [f"rounds={rounds}"] if rounds is not None else []
    described = ExperimentFile.load(file, [*changes, *replaced])
    _print_notes(file, described)
    experiment, console = described.to_experiment(), Terminal()
    with target.connect() as fl:
        if (program := described.program_file) is not None:
            experiment = _push(fl, program, experiment, console, quiet=as_json)
        spec = experiment.spec
        if prefetch:
            prefetch_program(
                fl, spec.program, Terminal(stderr=True) if as_json else console, limits=spec.limits
            )
        if spec.id is None:  # one that can be told when it is interrupted
            experiment = replace(experiment, id=new_id(spec.name))
        try:
            handle = fl.run(experiment, folder=described.folder)
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
                f"Experiment {handle.id}: {escape(described.spec.program)}, {count} of {escape(str(strategy))}",
                soft_wrap=True,
            )
        if detach:
            console.print(f"  follow it: {target.command('experiment', 'follow', handle.id)}", soft_wrap=True)
            console.print(f"  end it:    {target.command('experiment', 'stop', handle.id)}", soft_wrap=True)
            return
        follow(fl, handle, target, rounds=spec.rounds, as_json=as_json, console=console, strict=strict)


def _print_notes(file: Path, described: ExperimentFile) -> None:
    """Say what a person may not have meant."""
    if described.notes:
        print(f"{file}: {'; '.join(described.notes)}: the old names are still read", file=sys.stderr)
    if described.evaluates_on_training_data:
        print(
            f"{file}: evaluate: devices evaluate on what they train on, as nothing is held out: add data.split = "
            "{ holdout = 0.2 }, unless the program splits its data itself",
            file=sys.stderr,
        )


def _push(fl: Propeller, file: Path, experiment: Experiment, console: Terminal, *, quiet: bool) -> Experiment:
    """The experiment with its program in the stack's registry."""
    name = experiment.spec.name or default_name(file.stem)
    with Terminal(stderr=True).status(f"Building {file} ({FIRST_BUILD}) …"):
        pushed = fl.push_program(file, name)
    if not quiet:
        built = f"built in {pushed.build_s:.1f} s, " if pushed.build_s else ""
        console.print(f"Program {escape(str(file))}: {built}pushed in {pushed.push_s:.1f} s", soft_wrap=True)
    return replace(experiment, program=pushed.reference, name=name)
