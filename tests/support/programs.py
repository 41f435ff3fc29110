"""Small Wasm programs for tests of what is around the program: they do what their environment says."""

import functools
import hashlib

import wasmtime

# A command that goes through its environment: REPLY=text is written to standard output, SAY=text to standard error,
# KEEP=text writes what is in /state/n to standard error, as a line, and adds text to it,
# COPY=1 copies /in/model.safetensors to /out/update.safetensors, FAIL=1 exits with 3, SPIN=1 runs for ever. It also
# exports ``add`` (i32, i32) and is named apart from other tests' programs by the text in its memory.
_ECHO = r"""
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 80)
  (data (i32.const 0) "model.safetensors")
  (data (i32.const 32) "update.safetensors")
  (data (i32.const 64) "%s")
  (data (i32.const 120) "n\n")
  (func $put (param $fd i32) (param $at i32) (param $len i32)
    (block $end (loop $more
      (br_if $end (i32.eqz (local.get $len)))
      (i32.store (i32.const 128) (local.get $at))
      (i32.store (i32.const 132) (local.get $len))
      (br_if $end (call $write (local.get $fd) (i32.const 128) (i32.const 1) (i32.const 136)))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 136))))
      (local.set $len (i32.sub (local.get $len) (i32.load (i32.const 136))))
      (br $more))))
  (func $copy (local $from i32) (local $to i32)
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 17) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 140)))
    (local.set $from (i32.load (i32.const 140)))
    (drop (call $open (i32.const 4) (i32.const 0) (i32.const 32) (i32.const 18) (i32.const 1)
      (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 140)))
    (local.set $to (i32.load (i32.const 140)))
    (block $end (loop $more
      (i32.store (i32.const 128) (i32.const 4194304))
      (i32.store (i32.const 132) (i32.const 65536))
      (br_if $end (call $read (local.get $from) (i32.const 128) (i32.const 1) (i32.const 136)))
      (br_if $end (i32.eqz (i32.load (i32.const 136))))
      (call $put (local.get $to) (i32.const 4194304) (i32.load (i32.const 136)))
      (br $more))))
  (func $keep (param $at i32) (local $file i32)
    (if (call $open (i32.const 5) (i32.const 0) (i32.const 120) (i32.const 1) (i32.const 1)
      (i64.const 0x42) (i64.const 0) (i32.const 1) (i32.const 140)) (then (call $exit (i32.const 4))))
    (local.set $file (i32.load (i32.const 140)))
    (i32.store (i32.const 128) (i32.const 4194304))
    (i32.store (i32.const 132) (i32.const 65536))
    (drop (call $read (local.get $file) (i32.const 128) (i32.const 1) (i32.const 136)))
    (call $put (i32.const 2) (i32.const 4194304) (i32.load (i32.const 136)))
    (call $put (i32.const 2) (i32.const 121) (i32.const 1))
    (call $put (local.get $file) (local.get $at) (call $length (local.get $at))))
  (func $is (param $at i32) (param $word i32) (result i32)
    (i32.eq (i32.load (local.get $at)) (local.get $word)))
  (func $length (param $at i32) (result i32) (local $end i32)
    (local.set $end (local.get $at))
    (block $done (loop $more
      (br_if $done (i32.eqz (i32.load8_u (local.get $end))))
      (local.set $end (i32.add (local.get $end) (i32.const 1)))
      (br $more)))
    (i32.sub (local.get $end) (local.get $at)))
  (func (export "_start") (local $left i32) (local $slot i32) (local $at i32)
    (drop (call $sizes (i32.const 144) (i32.const 148)))
    (drop (call $environ (i32.const 1024) (i32.const 65536)))
    (local.set $left (i32.load (i32.const 144)))
    (local.set $slot (i32.const 1024))
    (block $end (loop $more
      (br_if $end (i32.eqz (local.get $left)))
      (local.set $at (i32.load (local.get $slot)))
      (if (call $is (local.get $at) (i32.const 0x4c504552)) (then
        (call $put (i32.const 1) (i32.add (local.get $at) (i32.const 6))
          (call $length (i32.add (local.get $at) (i32.const 6))))))
      (if (call $is (local.get $at) (i32.const 0x3d594153)) (then
        (call $put (i32.const 2) (i32.add (local.get $at) (i32.const 4))
          (call $length (i32.add (local.get $at) (i32.const 4))))))
      (if (call $is (local.get $at) (i32.const 0x5045454b)) (then
        (call $keep (i32.add (local.get $at) (i32.const 5)))))
      (if (call $is (local.get $at) (i32.const 0x59504f43)) (then (call $copy)))
      (if (call $is (local.get $at) (i32.const 0x4c494146)) (then (call $exit (i32.const 3))))
      (if (call $is (local.get $at) (i32.const 0x4e495053)) (then (loop $for_ever (br $for_ever))))
      (local.set $slot (i32.add (local.get $slot) (i32.const 4)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br $more))))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
)
"""


@functools.cache
def echo(name: str = "echo") -> bytes:
    """The program that does what its environment says; another ``name`` is another program."""
    return bytes(wasmtime.wat2wasm(_ECHO % name))


def digest(content: bytes) -> str:
    """``sha256:…`` of a program."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
