"""The shared runtime of programs in Python: the standard library in it, what a task sees of its layer, and how it fails."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from propeller.digests import digest_of
from propeller.program.native import MISSING_STDLIB
from propeller.wasm.build import BuildError, build
from propeller.wasm.build.runtime import Runtime, python_runtime
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome
from propeller.wasm.runtimes import runtimes_folder
from propeller.wasm.sandbox import Sandbox
from support.python_programs import CACHE_HOME

HEAD = "import json, sys\nfrom propeller.program import Update, train\n\n@train\ndef fit(model, data, hyperparams, ctx):\n"
FILES = {"model.json": b'{"w": [0.0]}', "dataset.json": b'{"data": [{"x": [1.0], "y": 1}]}'}
ENV = {"ROUND_ID": "r", "PROPLET_ID": "p", "MODEL_URI": "fl/models/global_model_v0"}


def run(script: Path, **options: Any) -> RunOutcome:
    """Build a script, and run it once."""
    program = build(script, script.with_suffix(".wasm"), cache=CACHE_HOME / "propeller").path.read_bytes()

    async def once() -> RunOutcome:
        folder = CACHE_HOME / "propeller" / "sandbox"
        async with Sandbox(folder, runtimes=runtimes_folder()) as sandbox:
            await sandbox.add(digest_of(program), program)
            task = ProgramRun("task", digest_of(program), env={**ENV, **options.pop("env", {})}, files=FILES)
            return await sandbox.run(task, options.get("on_stderr"))

    return asyncio.run(once())


def metrics_of(tmp_path: Path, body: str) -> dict[str, Any]:
    """What a function reports that ends with ``found``, a dict of numbers."""
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}{body}\n    return Update(model, num_samples=1, metrics=found)\n")
    lines: list[str] = []
    outcome = run(script, on_stderr=lines.append)
    assert outcome.error is None, lines
    found: dict[str, Any] = json.loads(outcome.stdout)["metrics"]
    return found


def test_the_standard_library_is_there_but_for_what_is_listed(tmp_path: Path) -> None:
    names = sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))
    body = f"""    import importlib
    found = {{}}
    for name in {names!r}:
        try:
            importlib.import_module(name)
            found[name] = 1
        except ImportError:
            found[name] = 0"""
    there = metrics_of(tmp_path, body)
    absent = {name for name in names if not there[name]}
    newer = {
        "annotationlib",
        "compression",
        "string.templatelib",
    }  # of the guest's Python, not of an older one here
    older = {name for name in absent if name in _GONE}
    assert absent - older == MISSING_STDLIB & set(names) - older
    assert not newer & absent


_GONE = {
    "aifc", "asynchat", "asyncore", "audioop", "binhex", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp", "mailcap", "msilib",
    "nntplib", "pipes", "smtpd", "sndhdr", "sunau", "telnetlib", "uu", "xdrlib",
}  # fmt: skip
"""Of older Pythons than the guest's."""


@pytest.mark.parametrize(
    "statement",
    [
        "from datetime import datetime; assert datetime.strptime('2024-05-06 07:08', '%Y-%m-%d %H:%M').hour == 7",
        "from xml.etree import ElementTree; assert ElementTree.fromstring('<a b=\"1\"/>').get('b') == '1'",
        "from urllib import parse; assert parse.quote('a b') == 'a%20b'",
        "from unittest import mock; assert mock.Mock()() is not None",
        "from concurrent import futures; assert futures.ThreadPoolExecutor",
        "from email import message_from_string; assert message_from_string('a: b\\n\\nc')['a'] == 'b'",
        "assert b'\\xef\\xbb\\xbfa'.decode('utf-8-sig') == 'a'",
        "assert 'ä'.encode('cp1252') == b'\\xe4' and 'a'.encode('idna') == b'a'",
        "import zoneinfo; assert zoneinfo.ZoneInfo",
        "import importlib; assert importlib.import_module('colorsys').rgb_to_hsv(0, 0, 0) == (0, 0, 0)",
        "import zlib, gzip; assert gzip.decompress(gzip.compress(b'a' * 9)) == b'a' * 9",
        "import decimal; assert decimal.Decimal('0.1') * 3 == decimal.Decimal('0.3')",
    ],
)
def test_what_is_imported_when_it_is_needed(tmp_path: Path, statement: str) -> None:
    """The interpreter itself imports some of these late, and others are found by a name."""
    assert metrics_of(tmp_path, f"    {statement}\n    found = {{'done': 1}}") == {"done": 1}


def test_coroutines_run_without_sockets(tmp_path: Path) -> None:
    body = """    import asyncio, time
    async def work(seconds, value):
        await asyncio.sleep(seconds)
        return value
    async def both():
        async with asyncio.timeout(5):
            return await asyncio.gather(work(0.02, 1), work(0.01, 2))
    found = {'sum': sum(asyncio.run(both())), 'again': asyncio.run(work(0, 3))}"""
    assert metrics_of(tmp_path, body) == {"sum": 3, "again": 3}


def test_a_task_sees_its_own_variables_and_files_alone(tmp_path: Path) -> None:
    body = """    import os
    found = {'variables': len([name for name in os.environ if name.startswith('PROPELLER')]),
             'files': len([name for name in os.listdir('/in') if name.startswith('.')]),
             'same': int(len(ctx.environment) == len(os.environ))}"""
    assert metrics_of(tmp_path, body) == {"variables": 0, "files": 0, "same": 1}


def test_modules_beside_the_script_and_a_long_one(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import other\n\ndef value():\n    return other.LONG[3]\n")
    (tmp_path / "other.py").write_text(f"LONG = {list(range(60_000))!r}\n")
    body = "    from helper import value\n    found = {'value': value(), 'length': len(__import__('other').LONG)}"
    assert metrics_of(tmp_path, body) == {"value": 3, "length": 60_000}


def test_a_script_that_gets_no_memory_is_said_to_have_met_the_limit(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}    all_at_once = bytearray(2_000_000_000)\n")
    lines: list[str] = []
    outcome = run(script, on_stderr=lines.append)
    assert lines[-1].startswith("script.py:6: MemoryError")
    assert outcome.limit == "memory_bytes"
    assert (outcome.error or "").startswith(f"memory_bytes: over the limit of {512 * 2**20} bytes (")


def test_a_traceback_has_the_lines_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def broken(table):\n    return table['absent']\n")
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}    import helper\n    helper.broken({{}})\n")
    lines: list[str] = []
    assert run(script, on_stderr=lines.append).error is not None
    text = "\n".join(lines)
    assert 'File "script.py", line 7, in fit\n    helper.broken({})' in text
    assert "File \"helper.py\", line 2, in broken\n    return table['absent']" in text
    assert lines[-1] == "helper.py:2: KeyError: 'absent'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HEAD}    pass\n\nraise SystemExit('not now')\n", "SystemExit: not now"),
        (f"{HEAD}    pass\n\nwhile True:\n    pass\n", "wall_time_s"),
        (f"{HEAD}    pass\n\nkept = [bytes(1 << 20) for _ in range(10_000)]\n", "script.py:8: MemoryError"),
    ],
    ids=["exit", "endless", "memory"],
)
def test_a_script_that_cannot_be_loaded_is_not_built(
    tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.wasm.build.python._LOADS_WITHIN", Limits(wall_time_s=3.0))
    (tmp_path / "script.py").write_text(text)
    with pytest.raises(BuildError, match=said):
        build(tmp_path / "script.py", tmp_path / "script.wasm", cache=CACHE_HOME / "propeller")
    assert not (tmp_path / "script.wasm").exists()


def test_without_its_runtime_a_program_says_what_it_needs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}    return Update(model, num_samples=1)\n")
    program = build(script, tmp_path / "script.wasm", cache=CACHE_HOME / "propeller").path.read_bytes()

    async def use() -> None:
        async with Sandbox(tmp_path / "sandbox") as sandbox:
            await sandbox.add(digest_of(program), program)
            missing = sandbox.missing_runtime(digest_of(program))
            assert missing is not None
            outcome = await sandbox.run(ProgramRun("task", digest_of(program), env=ENV, files=FILES))
            assert f"needs the runtime {missing}" in str(outcome.error)
            with pytest.raises(ProgramError, match="digest"):
                await sandbox.add(missing, b"\0asm\1\0\0\0")

    asyncio.run(use())


@pytest.mark.parametrize("length", [10, 200_000])
def test_a_task_cannot_be_given_other_code(tmp_path: Path, length: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"{HEAD}    return Update(model, num_samples=1, metrics={{'own': 1}})\n\nLONG = {'x' * length!r}\n"
    )
    other = {"PROPELLER_PROGRAM": "eyJzY3JpcHQiOiAiYSIsICJtb2R1bGVzIjoge319", "PROPELLER_COMPILE": "1"}
    outcome = run(script, env=other)
    assert outcome.error is None
    assert json.loads(outcome.stdout)["metrics"] == {"own": 1}
    assert not outcome.out_files


def test_a_program_whose_runtime_is_gone_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not taken from the cache, which has it over the one that is gone."""
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(f"{HEAD}    return Update(model, num_samples=1)\n")
    made = python_runtime(CACHE_HOME / "propeller" / "runtimes")
    shutil.copytree(made.path.parent, cache / "runtimes")
    build(script, tmp_path / "a.wasm", cache=cache)
    assert build(script, tmp_path / "b.wasm", cache=cache).cached
    (cache / "runtimes" / made.path.name).unlink()
    asked: list[Path] = []

    def make_again(folder: Path) -> Runtime:
        asked.append(folder)
        shutil.copy(made.path, folder)
        return Runtime(folder / made.path.name, made.digest)

    monkeypatch.setattr("propeller.wasm.build.python.python_runtime", make_again)
    assert not build(script, tmp_path / "c.wasm", cache=cache).cached
    assert asked == [cache / "runtimes"]
