"""The aggregator: one model of a round's updates."""
