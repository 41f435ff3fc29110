"""What every HTTP service shares: the app, its errors, authentication, limits, metrics and the server."""
