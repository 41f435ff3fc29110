"""Faults, made in a running stack by a seed, and the promises that hold all the same."""
