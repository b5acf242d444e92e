"""Sampling parameters, the shared noise, and the warped distributions they are drawn from.

`parameters`, `noise` and `bending` need numpy only, so that an agent without torch has all it needs; `warping` works on
torch tensors and is imported by those who hold a batch of them.
"""

from goodspeed.sampling.noise import Domain, gumbel, position_keys, uniform
from goodspeed.sampling.parameters import SamplingParams

__all__ = ["Domain", "SamplingParams", "gumbel", "position_keys", "uniform"]
