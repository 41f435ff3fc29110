"""The model registry: every version of a model, allocated once and never changed."""
