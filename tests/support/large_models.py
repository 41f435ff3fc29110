"""Models that need not be in memory: written to a file by blocks, with a program in C that trains them by blocks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from propeller.fl.tensors import Array, Specs, TensorSpec
from propeller.fl.tensors.safetensors import PREFIX, header_length, read_header
from propeller.tensors.safetensors import write_header
from support.c_programs import compiled

MIB = 1024 * 1024
BLOCK = 256 * 1024
"""Numbers that are in memory at a time."""

STEP = 0.25
"""What the program adds to each weight for each slot that its device counts itself to be in."""

_SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, MOST_RANGES = 256 };

static void fail(const char *text) { fprintf(stderr, "%s\n", text); exit(1); }

int main(void) {
  static float block[BLOCK / sizeof(float)];
  static char data[4096];
  FILE *file = fopen("/in/dataset.json", "rb");
  if (!file) fail("no data set");
  fread(data, 1, sizeof data - 1, file);
  fclose(file);
  char *slot = strstr(data, "\"x\"");
  if (!slot || !(slot = strpbrk(slot, "0123456789"))) fail("the data set has no slot");
  float added = 0.25f * (float)atoi(slot);

  FILE *in = fopen("/in/model.safetensors", "rb"), *out = fopen("/out/update.safetensors", "wb");
  uint64_t length = 0;
  if (!in || !out || fread(&length, 8, 1, in) != 1) fail("the model cannot be read, or the update not be written");
  char *header = malloc(length + 1);
  if (!header || fread(header, 1, length, in) != length) fail("the model has no header");
  header[length] = 0;
  fwrite(&length, 8, 1, out);
  fwrite(header, 1, length, out);
  /* Numbers lie by falling size of their type: those of F32 are one range after those of I64. */
  uint64_t first = UINT64_MAX, last = 0;
  for (char *at = header; (at = strstr(at, "\"dtype\":\"F32\"")); at++) {
    char *offsets = strstr(at, "\"data_offsets\":[");
    uint64_t begin = strtoull(offsets + 16, &offsets, 10), end = strtoull(offsets + 1, NULL, 10);
    if (begin < first) first = begin;
    if (end > last) last = end;
  }
  uint64_t place = 0;
  for (size_t count; (count = fread(block, 1, BLOCK, in)); place += count) {
    for (size_t i = 0; i < count / sizeof(float); i++) {
      uint64_t here = place + i * sizeof(float);
      if (here >= first && here < last) block[i] += added;
    }
    if (fwrite(block, 1, count, out) != count) fail("the update cannot be written: the disk is full");
  }
  char *wait = strstr(getenv("HYPERPARAMS") ? getenv("HYPERPARAMS") : "", "wait_s");
  if (wait) sleep(atoi(strchr(wait, ':') + 1));
  if (fclose(out)) fail("the update cannot be written: the disk is full");
  printf("{\"round_id\":\"%s\",\"proplet_id\":\"%s\",\"base_model_uri\":\"%s\",\"num_samples\":1,\"steps\":1,"
         "\"metrics\":{\"added\":%g}}\n", getenv("ROUND_ID"), getenv("PROPLET_ID"), getenv("MODEL_URI"), added);
}
"""
"""Adds ``STEP * slot`` to every F32 of the model, where ``slot`` is in the device's data set: ``{"data": [{"x": [1], "y": 0}]}``.

Then it waits for as many seconds as its hyperparameter ``wait_s`` says.
"""


def program() -> Path:
    """The program."""
    return compiled(_SOURCE)


def specs(mebibytes: int) -> Specs:
    """A model of some tensors: the largest has a quarter of it, eight more have the rest, and there is a counter."""
    numbers = mebibytes * MIB // 4
    columns = 1024
    return {
        "embedding": TensorSpec("F32", (numbers // 4 // columns, columns)),
        **{f"layer{n}.weight": TensorSpec("F32", (numbers * 3 // 32 // columns, columns)) for n in range(8)},
        "head.bias": TensorSpec("F32", (columns,)),
        "step": TensorSpec("I64", ()),
    }


def largest_tensor(mebibytes: int) -> int:
    """The size of its largest tensor, in bytes."""
    return mebibytes * MIB // 4


def pieces(model: Specs) -> Iterator[bytes]:
    """The document, in pieces. Its weights are small multiples of 1/8, so that sums of some of them are exact."""
    head, order = write_header(model)
    yield head
    for name in order:
        dtype, shape = model[name]
        count = int(np.prod(shape))
        if dtype == "I64":
            yield np.full(shape, 7, "<i8").tobytes()
            continue
        for start in range(0, count, BLOCK):
            yield _weights(start, min(count, start + BLOCK)).tobytes()


def check(document: Path, model: Specs, added: float) -> None:
    """See that a document holds the model with ``added`` on each weight.

    Raises:
        AssertionError: naming the tensor and the place.
    """
    with document.open("rb") as file:
        prefix = file.read(PREFIX)
        header = read_header(prefix + file.read(header_length(prefix)))
        found = {name: TensorSpec(entry.dtype, entry.shape) for name, entry in header.entries.items()}
        assert found == model, f"the document has {found}"
        for name, entry in header.entries.items():
            file.seek(header.start + entry.begin)
            if entry.dtype == "I64":
                assert file.read(8) == (7).to_bytes(8, "little"), f"{name} is no 7"
                continue
            for start in range(0, (entry.end - entry.begin) // 4, BLOCK):
                stop = min((entry.end - entry.begin) // 4, start + BLOCK)
                block = file.read(4 * (stop - start))
                wrong = np.frombuffer(block, "<f4") != _weights(start, stop) + np.float32(added)
                assert not wrong.any(), f"{name}[{start + int(wrong.argmax())}] is wrong"


def _weights(start: int, stop: int) -> Array:
    return (np.arange(start, stop, dtype=np.uint32) % 4093).astype("<f4") / np.float32(8)
