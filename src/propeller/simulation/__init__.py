"""Experiments in virtual time: the fleet's own programs, strategies and state machines, on this machine's cores."""
