"""What others lose by whoever does not play by the rules, and what that gains: `make bench-attacks`."""
