"""Native programs: Python that a device's own interpreter runs with its own libraries, in the sandbox's processes."""
