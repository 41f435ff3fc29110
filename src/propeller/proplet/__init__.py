"""The proplet: a device's agent, which takes tasks from the manager and runs their programs in a sandbox."""
