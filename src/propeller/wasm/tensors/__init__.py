"""The host's side of ``propeller.program.tensors``: the same steps, done with NumPy beside the sandbox."""
