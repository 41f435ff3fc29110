"""The files of the process that compresses an update: in its ``in/``, and in its ``out/``."""

UPDATE, UPDATE_JSON = "update.safetensors", "update.json"
"""The update, as one of both."""

MODEL = "model.safetensors"
"""The base model."""

RESIDUAL = "residual.safetensors"
"""What earlier updates have left out, and in ``out/`` what the next one has to add."""

ENCODED = "encoded"
"""The body of the update as it is sent."""
