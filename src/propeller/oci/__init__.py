"""OCI artifacts: references, a client that pushes and pulls programs, an image-layout folder and a registry over it."""
