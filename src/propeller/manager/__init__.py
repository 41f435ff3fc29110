"""The manager: it knows proplets and tasks, and starts the tasks of rounds."""
