"""Where services keep what they own: a SQL database and blobs."""
