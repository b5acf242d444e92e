"""`make bench-links`: one server process and as many agents' links as it is asked to hold."""
