"""Samples from files: CSV, JSON, npz, safetensors, Parquet and IDX, with columns and types checked, for simulations and for devices."""
