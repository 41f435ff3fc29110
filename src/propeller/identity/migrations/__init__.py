"""The history of the identity's tables (see ``propeller.store.migrations``)."""
