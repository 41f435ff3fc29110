"""OCI artifacts: references, a client that pushes and pulls programs and an image-layout folder."""
