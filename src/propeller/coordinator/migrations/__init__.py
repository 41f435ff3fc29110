"""The history of the coordinator's tables (see ``propeller.store.migrations``)."""
