"""Components that send tapes to the host's tensors, written as text."""

import json
from typing import Any

import wasmtime

_TYPES = """
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer 1 $error (type $outer))
    (export "error" (type $inner (eq $outer)))
    (type $failure (variant (case "last-operation-failed" (own $inner)) (case "closed")))
    (export "stream-error" (type $said (eq $failure)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $stream)) (param "contents" (list u8)) (result (result (error $said)))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $stream (type $outer))
    (export "output-stream" (type $inner (eq $outer)))
    (export "get-stdout" (func (result (own $inner))))))
  (import "propeller:program/tensors@0.1.0" (instance $tensors
    (export "run" (func (param "tape" string) (result (result string (error string)))))))
  (core module $memory
    (memory (export "memory") 16)
    (global $top (mut i32) (i32.const 1000000))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $top (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
      (if (i32.gt_u (i32.add (global.get $top) (local.get 3)) (i32.shl (memory.size) (i32.const 16)))
        (then (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 16))))))
      (global.get $top)
      (global.set $top (i32.add (global.get $top) (local.get 3)))))
  (core instance $store (instantiate $memory))
  (alias core export $store "memory" (core memory $mem))
  (alias core export $store "realloc" (core func $realloc))
  (core func $run (canon lower (func $tensors "run") (memory $mem) (realloc $realloc)))
  (core func $open (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $mem)))
"""

_MAIN = """
    (import "host" "memory" (memory 16))
    (import "host" "run" (func $run (param i32 i32 i32)))
    (import "host" "open" (func $open (result i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (global $out (mut i32) (i32.const 0))
    (func $say (param $at i32) (param $size i32) (local $part i32)
      (loop $more
        (local.set $part (select (i32.const 4096) (local.get $size) (i32.gt_u (local.get $size) (i32.const 4096))))
        (call $write (global.get $out) (local.get $at) (local.get $part) (i32.const 32))
        (local.set $at (i32.add (local.get $at) (local.get $part)))
        (local.set $size (i32.sub (local.get $size) (local.get $part)))
        (br_if $more (local.get $size))))
    (func $send (param $at i32) (param $size i32)
      (call $run (local.get $at) (local.get $size) (i32.const 16))
      (if (i32.load8_u (i32.const 16))
        (then (call $say (i32.const 64) (i32.const 6)))
        (else (call $say (i32.const 72) (i32.const 3))))
      (call $say (i32.load (i32.const 20)) (i32.load (i32.const 24)))
      (call $say (i32.const 80) (i32.const 1)))
    (data (i32.const 64) "error ")
    (data (i32.const 72) "ok ")
    (data (i32.const 80) "\\n")
"""

FIRST = 1024
"""Where the first tape is in memory."""


def sender(*tapes: Any, code: str = "") -> bytes:
    """A component that sends tapes (texts, or what JSON makes one of) and writes each answer, a line each.

    Args:
        tapes: What to send; the first is at ``FIRST``.
        code: Wat to run after; ``(call $send at size)`` sends what is in memory.
    """
    data, calls, at = "", "", FIRST
    for tape in tapes:
        text = (tape if isinstance(tape, str) else json.dumps(tape)).encode()
        escaped = "".join(f"\\{byte:02x}" for byte in text)
        data += f'(data (i32.const {at}) "{escaped}")'
        calls += f"(call $send (i32.const {at}) (i32.const {len(text)}))"
        at += len(text)
    return bytes(
        wasmtime.wat2wasm(f"""(component {_TYPES}
          (core module $main {_MAIN} {data}
            (func (export "run") (result i32)
              (global.set $out (call $open)) {calls} {code} (i32.const 0)))
          (core instance $i (instantiate $main (with "host" (instance
            (export "memory" (memory $mem)) (export "run" (func $run))
            (export "open" (func $open)) (export "write" (func $write))))))
          (func $main_ (result (result)) (canon lift (core func $i "run")))
          (instance $exports (export "run" (func $main_)))
          (export "wasi:cli/run@0.2.0" (instance $exports)))""")
    )
