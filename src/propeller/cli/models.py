"""``propeller model …``: model versions on the screen and in files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from propeller.cli.connection import Target
from propeller.cli.experiment_file import read_json
from propeller.cli.tables import Column, print_fields, print_rows
from propeller.cli.terminal import Terminal, escape
from propeller.errors import StartError
from propeller.protocol.wire import MalformedMessageError, decode_trusted

_MAX_TENSORS = 200
"""Tensors that are shown on the screen; ``--json`` has all."""

_LIST_COLUMNS = (
    Column("version", right=True),
    Column("round"),
    Column("aliases", spare=1),
    Column("metrics", spare=2),
    Column("strategy", spare=3),
    Column("created", spare=4),
)
_TENSOR_COLUMNS = (Column("tensor"), Column("dtype"), Column("shape"))
_DIFF_COLUMNS = (
    Column("tensor"),
    Column("status"),
    Column("dtype", spare=5),
    Column("shape", spare=6),
    Column("changed", right=True),
    Column("l2", right=True, spare=1),
    Column("relative", right=True, spare=3),
    Column("max abs", right=True, spare=4),
    Column("cosine", right=True, spare=2),
)


def show_list(
    target: Target,
    *,
    experiment: str | None,
    strategy: str | None,
    alias: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the newest versions, newest first."""
    with target.connect() as fl:
        found = fl.models.list(experiment=experiment, strategy=strategy, alias=alias, limit=limit)
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        Terminal().print(
            "No model versions that fit." if experiment or strategy or alias else "No model versions."
        )
        return
    rows = [
        (f"v{one['version']}", "damaged", "", "", "", "") if "error" in one else _list_row(one)
        for one in found
    ]
    print_rows(Terminal(), _LIST_COLUMNS, rows)


def show_model(target: Target, version: str, *, as_json: bool) -> None:
    """Print what is known of a version."""
    with target.connect() as fl:
        info = fl.models.info(version)
    if as_json:
        print(json.dumps(info))
        return
    lineage = info["lineage"] or {}
    tensors = info["tensors"]
    numbers = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    program = lineage.get("program") or {}
    shown = {
        "version": f"v{info['version']}",
        "aliases": ", ".join(info["aliases"]),
        "created": _moment(info["created_at"]),
        "size": f"{_count(numbers, 'number')} in {_count(len(tensors), 'tensor')}, {info['size']:,} bytes",
        "digest": info["digest"],
        "server state": "yes" if info["has_state"] else "",
        "experiment": _text(lineage.get("experiment")),
        "round": " ".join(filter(None, [_text(lineage.get("number")), _text(lineage.get("round"))])),
        "parent": _version(lineage.get("parent")),
        "strategy": _strategy(lineage, with_params=True),
        "program": " ".join(filter(None, [program.get("reference"), program.get("digest")])),
        "updates": _updates(lineage),
        "metrics": _metrics(lineage.get("metrics")),
    }
    console = Terminal()
    print_fields(console, shown)
    rows = [
        (name, tensor["dtype"], str(tensor["shape"])) for name, tensor in list(tensors.items())[:_MAX_TENSORS]
    ]
    console.print()
    print_rows(console, _TENSOR_COLUMNS, rows)
    _say_what_is_left_out(console, len(tensors))


def show_diff(target: Target, first: str, second: str, *, as_json: bool) -> None:
    """Print how a version differs from another."""
    with target.connect() as fl:
        found = fl.models.diff(first, second)
    if as_json:
        print(json.dumps(found))
        return
    console, total = Terminal(), found["total"]
    counts = ", ".join(f"{number} {status}" for status, number in total["tensors"].items() if number)
    console.print(f"v{found['from']} → v{found['to']}: {counts or 'no tensors'}", soft_wrap=True)
    rows = [
        (name, tensor["status"], _both(tensor["dtype"]), _both(tensor["shape"]), *_figures(tensor))
        for name, tensor in list(found["tensors"].items())[:_MAX_TENSORS]
    ]
    print_rows(console, _DIFF_COLUMNS, [*rows, ("total", "", "", "", *_figures(total))])
    _say_what_is_left_out(console, len(found["tensors"]))
    for field, (before, after) in found["lineage"].items():
        console.print(
            f"[dim]{escape(field)}[/]  {escape(_text(before))} → {escape(_text(after))}", soft_wrap=True
        )


def export_model(target: Target, version: str, file: Path) -> None:
    """Write a version to a file."""
    with target.connect() as fl:
        number = fl.models.export(version, file)
    print(f"Wrote v{number} to {file}, {file.stat().st_size} bytes")


def load_model(target: Target, file: Path, *, version: int | None, lineage: dict[str, Any] | None) -> None:
    """Store a file as a version, the next one if none is given."""
    with target.connect() as fl:
        number = fl.models.load(file, version=version, lineage=lineage)
    print(f"Stored {file} as v{number}")


def read_lineage(text: str) -> dict[str, Any]:
    """The lineage in JSON, or in a file of it.

    Raises:
        StartError: it is neither.
    """
    if not text.lstrip().startswith("{"):
        return read_json(Path(text))
    try:
        return decode_trusted(text)
    except MalformedMessageError as error:
        raise StartError(f"--lineage: {error}") from None


def show_aliases(target: Target, *, as_json: bool) -> None:
    """Print every alias and its version."""
    with target.connect() as fl:
        aliases = fl.models.aliases()
    if as_json:
        print(json.dumps(aliases))
        return
    rows = [(name, f"v{version}") for name, version in aliases.items()]
    print_rows(Terminal(), (Column("alias"), Column("version", right=True)), rows)


def change_alias(target: Target, name: str, version: str | None) -> None:
    """Have an alias stand for a version, or forget it if there is none."""
    with target.connect() as fl:
        if version is None:
            fl.models.delete_alias(name)
            print(f"{name} is no alias any more")
            return
        given: int | str = int(version) if version.isascii() and version.isdigit() else version
        print(f"{name} is v{fl.models.set_alias(name, given)}")


def verify_model(target: Target, version: str, *, as_json: bool) -> int:
    """Print whether a version is what its updates make; gives 0 if it is, else 1."""
    with target.connect() as fl:
        found = fl.models.verify(version)
    if as_json:
        print(json.dumps(found))
        return 0 if found["verified"] else 1
    console = Terminal()
    updates = found["updates"]
    made = _count(updates if isinstance(updates, int) else len(updates), "update")
    if found["verified"]:
        console.print(
            f"v{found['version']} is what its {made} make, bit for bit: {found['digest']}", soft_wrap=True
        )
        if not found.get("on_record", True):
            console.print(
                "The coordinator's database does not have the round: that these were its updates is what the version's lineage says."
            )
        return 0
    console.print(f"[red]v{found['version']} is NOT what its {made} make[/]", soft_wrap=True)
    console.print(f"  stored      {found['digest']}\n  recomputed  {found['recomputed']}", soft_wrap=True)
    return 1


def _list_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    lineage = one["lineage"] or {}
    prefix = f"{lineage.get('experiment')}/"  # beside the round, which begins with it too
    aliases = [
        f"…/{name.removeprefix(prefix)}" if name.startswith(prefix) else name for name in one["aliases"]
    ]
    return (
        f"v{one['version']}",
        _text(lineage.get("round") or lineage.get("experiment")),
        ", ".join(aliases),
        _metrics(lineage.get("metrics")),
        _strategy(lineage),
        _moment(one["created_at"])[: len("2026-11-27 10:00")],
    )


def _say_what_is_left_out(console: Console, count: int) -> None:
    if count > _MAX_TENSORS:
        console.print(f"and {count - _MAX_TENSORS} more; --json has all")


def _figures(found: Mapping[str, Any]) -> list[str]:
    if "numbers" not in found:
        return [""] * 5
    figures = (_number(found[name]) for name in ("l2", "relative", "max_abs", "cosine"))
    return [f"{found['changed']:,}/{found['numbers']:,}", *figures]


def _both(values: list[Any]) -> str:
    before, after = (_text(value) for value in values)
    return before if before == after else f"{before or '(none)'} → {after or '(none)'}"


def _strategy(lineage: Mapping[str, Any], *, with_params: bool = False) -> str:
    used = lineage.get("strategy") or {}
    params = used.get("params") if with_params else None
    return " ".join(
        filter(None, [_text(used.get("name") or used.get("program")), json.dumps(params) if params else ""])
    )


def _updates(lineage: Mapping[str, Any]) -> str:
    parts = [
        _count(lineage["participants"], "update") if "participants" in lineage else "",
        _count(lineage["num_samples"], "sample") if "num_samples" in lineage else "",
    ]
    return " of ".join(filter(None, parts))


def _metrics(metrics: Mapping[str, float] | None) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in (metrics or {}).items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001 - a dash


def _version(version: int | None) -> str:
    return "" if version is None else f"v{version}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _moment(text: str) -> str:
    return text[:19].replace("T", " ")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
