"""The array language: what programs reckon with, and the machines that do it, in the sandbox's host and in a program alike.

A program's side records: ``array`` and ``functions`` are what it writes, ``grad`` and ``jit`` transform its functions, ``session`` knows the
``tape`` that they record on. The other side does the steps of a tape: ``machine`` in general, ``numpy_machine`` and ``python_machine`` with
their arithmetic. What both know of an operation is in ``operations``. Programs import all of it as ``propeller.program.tensors``.
"""
