"""The embedded OCI registry: the distribution specification 1.1 over an image-layout folder."""
