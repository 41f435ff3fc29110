"""The array language: what programs compute with, and the machines that do the work, in the sandbox's host or in the program itself.

A program's side records: ``array`` and ``functions`` are what it writes, ``grad`` and ``jit`` transform its functions, ``session`` knows the
``tape`` that they record on. The other side does the steps of a tape: ``machine`` in general, ``numpy_machine`` and ``python_machine`` with
their arithmetic. What both know of an operation is in ``operations``. Programs import all of it as ``propeller.program.tensors``.
"""
