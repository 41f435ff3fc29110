"""``propeller try``: one run of a program on files of this machine, in the sandbox as a proplet runs it, or natively."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from propeller.process.run import StartError
from propeller.proplet.updates import TENSORS_FILE, read_update
from propeller.proplet.work import TaskError
from propeller.wasm.job import Job, Limits, ProgramError
from propeller.wasm.link import LinkError
from propeller.wasm.sandbox import Sandbox

_ROUND, _PROPLET = "r-try", "try"


def run_try(
    program: Path, *, model: Path, data: Path, hyperparams: dict[str, Any], mode: str, limits: Limits
) -> int:
    """Run a ``.wasm`` in the sandbox or a ``.py`` as plain Python; print what it gives back and what it took.

    Returns:
        The exit code: 1 if the program failed, for the reason printed.

    Raises:
        StartError: a file is missing or is not what it should be.
    """
    files = {
        "model.safetensors" if model.suffix == ".safetensors" else "model.json": _read(model),
        "dataset.json": _dataset(data),
        "hyperparams.json": json.dumps(hyperparams).encode(),
    }
    env = {
        "ROUND_ID": _ROUND,
        "PROPLET_ID": _PROPLET,
        "MODEL_URI": "fl/models/global_model_v0",
        "HYPERPARAMS": json.dumps(hyperparams),
        "FL_MODE": mode,
        **{
            variable: files[name].decode()
            for variable, name in (("MODEL_DATA", "model.json"), ("DATASET_DATA", "dataset.json"))
            if len(files.get(name, b"")) in range(1, 1024 * 1024)
        },
    }
    if program.suffix == ".py":
        return _natively(program, files, env)
    return asyncio.run(_sandboxed(_read(program), files, env, limits, mode))


async def _sandboxed(
    wasm: bytes, files: dict[str, bytes], env: dict[str, str], limits: Limits, mode: str
) -> int:
    digest = f"sha256:{hashlib.sha256(wasm).hexdigest()}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "propeller" / "sandbox"
    try:
        async with Sandbox(cache) as sandbox:
            await sandbox.add(digest, wasm, limits)
            job = Job("try", digest, env=env, files=files, limits=limits)
            outcome = await sandbox.run(job, on_stderr=lambda line: print(line, file=sys.stderr))
    except (ProgramError, LinkError) as error:
        raise StartError(str(error)) from None
    if outcome.error is None and mode == "train":
        try:
            read_update(outcome.stdout, outcome.out_files.get(TENSORS_FILE), env, _PROPLET)
        except TaskError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    sys.stdout.write(outcome.stdout.decode(errors="replace"))
    for name, content in outcome.out_files.items():
        print(f"/out/{name}: {len(content)} bytes", file=sys.stderr)
    took = ", ".join(f"{name} {value:.0f}" for name, value in outcome.metrics.items())
    print(f"[{took}]", file=sys.stderr)
    if outcome.error is not None:
        print(f"error: {outcome.error}", file=sys.stderr)
        return 1
    return 0


def _natively(script: Path, files: dict[str, bytes], env: dict[str, str]) -> int:
    if not script.is_file():
        raise StartError(f"{script}: there is no such file")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "in").mkdir()
        (root / "out").mkdir()
        for name, content in files.items():
            (root / "in" / name).write_bytes(content)
        command = [sys.executable, "-P", "-m", "propeller.program.native", str(script), place]
        return subprocess.run(command, env={**os.environ, **env}, check=False).returncode  # noqa: S603 - the user's own


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None


def _dataset(file: Path) -> bytes:
    content = _read(file)
    try:
        document = json.loads(content)
    except ValueError as error:
        raise StartError(f"{file}: not JSON: {error}") from None
    if isinstance(document, list):
        document = {"data": document}
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise StartError(f'{file}: give {{"data": [{{"x": [0.1, 0.2], "y": 1}}, …]}}')
    return json.dumps({**document, "size": len(document["data"])}).encode()
