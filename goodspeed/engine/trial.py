"""Whether a model may be run leanly: tried on it, since a structure does not tell what is computed in it.

```
model -> is_known -> run on a trial, both ways -> the same logits -> Lean
             |                                           |
             +------------------ no ---------------------+-> None: it runs as transformers has it
```
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from goodspeed.engine.lean import Asked, Lean, is_known
from goodspeed.engine.support import reach

__all__ = ["run_leanly"]

logger = logging.getLogger(__name__)

_APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""By how much of their root mean square logits may differ, in the root mean square: rounding does no more."""
_FARTHEST = 2**15
"""The last position that is tried, where the model sets no limit."""


def run_leanly(model: PreTrainedModel) -> Lean | None:
    """What runs a model leanly; its weights may be moved for it, and stay what they are.

    Args:
        model: with the engine's attention in place.

    Returns:
        None if it has another structure, is shared or quantised, or computes something else than `Lean` does.
    """
    name = type(model).__name__
    if not is_known(model):
        logger.info("%s runs as transformers has it: its structure is not known", name)
        return None
    trial = _Trial(reach(model) or _FARTHEST, model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        wanted = trial.run_model(model)
        try:
            found = Lean(model, trial.asked)
            apart = _apart(found(trial.tokens, trial.positions, trial.wanted, trial), wanted)
        except (RuntimeError, KeyError, ValueError, AttributeError) as error:
            logger.warning("%s runs as transformers has it: run leanly it fails (%s)", name, error)
            return None
    if not apart <= _APART[wanted.dtype]:
        logger.warning("%s runs as transformers has it: run leanly, its logits are %.1e apart", name, apart)
        return None
    logger.info("%s runs leanly: its logits are %.1e apart", name, apart)
    return found


class _Trial:
    """A batch of a few tokens, near and far, which see each other and store nothing; notes what layers ask for.

    Args:
        limit: one past the last position.
        vocab_size: of the model.
    """

    def __init__(self, limit: int, vocab_size: int) -> None:
        near, middle, last = range(6), range(limit // 2, limit // 2 + 3), range(limit - 3, limit)
        chosen = sorted({position for position in (*near, *middle, *last) if 0 <= position < limit})
        self.positions = torch.tensor([chosen])
        self.tokens = torch.arange(len(chosen))[None] % vocab_size
        self.wanted = torch.arange(len(chosen))  # all
        self.asked: dict[int, Asked] = {}

    def run_model(self, model: PreTrainedModel) -> Tensor:
        """Run it as it is: [tokens, vocab]."""
        output = model(
            input_ids=self.tokens,
            position_ids=self.positions,
            logits_to_keep=0,  # all
            use_cache=False,
            engine_batch=self,
        )
        logits: Tensor = output.logits[0]
        return logits

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
    ) -> Tensor:
        """Attend to the trial's own tokens; see `AttendingBatch`."""
        heads, kv_heads = query.shape[1], key.shape[1]
        self.asked[layer] = Asked(heads, kv_heads, query.shape[-1], scaling, window)
        asking, seen = self.positions[0, :, None], self.positions[0]
        visible = (seen <= asking) & (seen > asking - (window or math.inf))
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scaling, enable_gqa=heads != kv_heads
        )
        return attended.transpose(1, 2)


def _apart(logits: Tensor, wanted: Tensor) -> float:
    """The root mean square of the differences, as a share of that of the logits; NaN if there is any."""
    difference = (logits.double() - wanted.double()).square().mean().sqrt()
    return float(difference / wanted.double().square().mean().sqrt())
