"""Federated learning without I/O and clocks: the round as a state machine, strategies, and tensors."""
