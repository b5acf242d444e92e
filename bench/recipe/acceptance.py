"""How often a target accepts a draft's tokens, measured on text that the target wrote."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

PROMPT_TOKENS = 64
WRITTEN_TOKENS = 192
TEMPERATURES = (0.0, 0.7, 1.0)
COUPLED_DRAWS = 4


@dataclass(frozen=True)
class Acceptance:
    """Acceptance per drafted token under the two rules of verification."""

    ratio: float
    """Mean of sum_v min(p(v), q(v)): what the ratio rule accepts; at temperature 0 the greedy agreement."""
    coupled: float
    """Share of positions where draft and target draw the same token from the same Gumbel noise."""


@torch.no_grad()
def write(
    target: PreTrainedModel, prompts: torch.Tensor, new_tokens: int, temperature: float, seed: int
) -> torch.Tensor:
    """Lets the target continue each prompt; it goes on past the end of a document.

    Args:
        target: who writes.
        prompts: int64 [rows, prompt].
        new_tokens: how many tokens to write in each row.
        temperature: 0 for greedy text.
        seed: of the draws.

    Returns:
        int64 [rows, prompt + new_tokens], prompts included.
    """
    generator = torch.Generator().manual_seed(seed)
    cache, texts, fed = DynamicCache(config=target.config), [prompts], prompts
    for _ in range(new_tokens):
        logits = target(input_ids=fed, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if temperature > 0:
            fed = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            fed = logits.argmax(-1, keepdim=True)
        texts.append(fed)
    return torch.cat(texts, 1)


@torch.no_grad()
def measure(
    target: PreTrainedModel, draft: PreTrainedModel, texts: torch.Tensor, temperature: float, seed: int
) -> Acceptance:
    """Measures a draft on text that the target wrote at `temperature` after prompts of `PROMPT_TOKENS`.

    Args:
        target: the verifier.
        draft: the proposer.
        texts: int64 [rows, length] from `write`.
        temperature: of both models; 0 compares their most likely tokens.
        seed: of the Gumbel noise.
    """
    generator = torch.Generator().manual_seed(seed)
    ratio, coupled, positions = 0.0, 0.0, 0
    for rows in torch.split(texts, 8):
        p, q = (
            model(input_ids=rows, use_cache=False).logits[:, PROMPT_TOKENS - 1 : -1].flatten(0, 1).float()
            for model in (target, draft)
        )  # [positions, vocab] each
        positions += len(p)
        if temperature == 0:
            agreed = (p.argmax(-1) == q.argmax(-1)).sum().item()
            ratio, coupled = ratio + agreed, coupled + agreed
            continue
        p, q = (p / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
        ratio += torch.minimum(p, q).exp().sum().item()
        for _ in range(COUPLED_DRAWS):
            gumbel = -torch.empty_like(p).exponential_(generator=generator).log()
            coupled += ((p + gumbel).argmax(-1) == (q + gumbel).argmax(-1)).sum().item() / COUPLED_DRAWS
    return Acceptance(ratio=ratio / positions, coupled=coupled / positions)
