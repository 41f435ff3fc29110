"""Measurements: how to run each stands in its docstring."""
