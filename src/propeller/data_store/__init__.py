"""The local data store: one dataset for each proplet."""
