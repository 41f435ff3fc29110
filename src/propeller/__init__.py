"""Propeller in Python: federated learning on fleets of edge devices."""

__version__ = "0.1.0"
