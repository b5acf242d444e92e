"""What is proved under a virtual clock, with the objects that production runs: `python -m bench.simulated`."""
