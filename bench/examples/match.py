"""A verification rule of one's own: the target draws by itself, and a draft stands as far as it happens to agree."""

import numpy as np

from goodspeed.rules import Drawn
from goodspeed.sampling import Domain, gumbel, position_keys
from goodspeed.verification import judge_coupled


class Match:
    """Lossless, simple, and accepts less than either rule that is built in: nothing is shared, and nothing sent."""

    name = "match"
    shares_noise = False
    candidates = 64

    def draw(self, tokens, weights, seed, position):
        """The agent draws with noise of its own."""
        noise = gumbel(position_keys([seed], [position], Domain.DRAFT), tokens.astype(np.int32))
        return Drawn(int(tokens[(np.log(weights) + noise).argmax()]))

    def settled(self, token):
        return b""

    def read(self, evidence, drafted, vocab_size):
        return []

    def judge(self, log_p, drafted, evidence, seed, base):
        """The server draws with other noise at every position."""
        keys = position_keys([seed] * len(log_p), range(base, base + len(log_p)), Domain.RESIDUAL)
        noise = gumbel(keys[:, None, :], np.arange(log_p.shape[-1], dtype=np.int32))
        return judge_coupled(drafted, (log_p.cpu().numpy() + noise).argmax(-1).tolist())
