"""What every test runs under: one thread, and examples that are the same on every run."""

import signal

import hypothesis
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# A shell starts background jobs with SIGINT ignored, and so would be every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
