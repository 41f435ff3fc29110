"""The coordinator: rounds of federated learning, from their configuration to their model version."""
