"""What every test runs under: one thread, and examples that are the same on every run."""

import hypothesis
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
