"""A verification rule of one's own: the target draws by itself, and a draft stands as far as it happens to agree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from goodspeed.rules import Drawn
from goodspeed.sampling import Domain, gumbel, position_keys
from goodspeed.verification import Judgement, judge_coupled


class Match:
    """Lossless, simple, and accepts less than either rule that is built in: nothing is shared, and nothing sent."""

    name = "match"
    shares_noise = False
    candidates = 64

    def draw(self, tokens: NDArray[np.int64], weights: NDArray[np.float32], seed: int, position: int) -> Drawn:
        """The agent draws, with noise of its own."""
        noise = gumbel(position_keys([seed], [position], Domain.DRAFT), tokens.astype(np.int32))
        return Drawn(int(tokens[(np.log(weights) + noise).argmax()]))

    def settled(self, token: int) -> bytes:
        """Nothing is sent with a token."""
        return b""

    def read(self, evidence: bytes, drafted: Sequence[int], vocab_size: int) -> list[None]:
        """So there is nothing to read."""
        return []

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[None], seed: int, base: int) -> Judgement:
        """The server draws, with other noise, at every position."""
        keys = position_keys([seed] * len(log_p), range(base, base + len(log_p)), Domain.RESIDUAL)
        noise = gumbel(keys[:, None, :], np.arange(log_p.shape[-1], dtype=np.int32))
        return judge_coupled(drafted, (log_p.cpu().numpy() + noise).argmax(-1).tolist())
