"""Programs that a service runs itself, beside those on devices: from an OCI registry, in a sandbox of the service's own."""
