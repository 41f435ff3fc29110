"""What every process of Propeller shares: settings, logs, signals, HTTP calls to other services."""
