"""The history of the manager's tables (see ``propeller.store.migrations``)."""
