"""All services on one machine: their processes, their state, and what a person needs to reach them."""
