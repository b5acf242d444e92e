"""What tuning brings: a table of losses, the utility-guided loss among clients, and a deployment that tunes itself."""
