"""Passages from a target at hand: it writes texts from prompts, and reads any text to say what it would have said."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from goodspeed.tuning.passages import Passage

__all__ = ["SUPPORT", "read_texts", "write_texts"]

SUPPORT = 64
"""How many of the target's likeliest tokens are kept of each distribution."""

_READ_TOKENS = 2**13
"""How many tokens the target reads in one pass."""


@torch.inference_mode()
def write_texts(
    target: PreTrainedModel, prompts: Tensor, new_tokens: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Let the target continue each prompt, past the end of a document too.

    Args:
        target: who writes.
        prompts: int64 [rows, prompt].
        new_tokens: how many tokens to write in each row.
        temperature: 0 for greedy text.
        generator: of the draws, on the target's device.

    Returns:
        int64 [rows, prompt + new_tokens], prompts included.
    """
    fed = prompts.to(target.device)
    cache, texts = DynamicCache(config=target.config), [fed]
    for _ in range(new_tokens):
        logits = target(input_ids=fed, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        if temperature > 0:
            fed = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            fed = logits.argmax(-1, keepdim=True)
        texts.append(fed)
    return torch.cat(texts, 1).cpu()


@torch.inference_mode()
def read_texts(
    target: PreTrainedModel,
    texts: Tensor,
    *,
    start: int = 1,
    client: str = "",
    domain: str = "",
    temperature: float = 1.0,
    support: int = SUPPORT,
) -> list[Passage]:
    """Keep what the target thinks of texts of one length.

    Args:
        target: who is asked.
        texts: int64 [rows, length].
        start: the first token it is asked about: the length of the prompt, where there was one.
        client: whose the texts are.
        domain: what they are about.
        temperature: at which they were drawn.
        support: how many of the likeliest tokens are kept.

    Returns:
        A passage a row.
    """
    passages = []
    for rows in torch.split(texts, max(1, _READ_TOKENS // texts.shape[1])):
        logits = target(input_ids=rows.to(target.device), use_cache=False).logits[:, start - 1 : -1].float()
        log_p, tokens = logits.log_softmax(-1).topk(min(support, logits.shape[-1]), dim=-1)
        kept = zip(
            rows.numpy().astype(np.int32),
            tokens.cpu().numpy().astype(np.int32),
            log_p.cpu().numpy().astype(np.float16),
            strict=True,
        )
        passages += [
            Passage(
                tokens=text,
                start=start,
                support=tokens_of_row,
                log_p=log_p_of_row,
                client=client,
                domain=domain,
                temperature=temperature,
            )
            for text, tokens_of_row, log_p_of_row in kept
        ]
    return passages
