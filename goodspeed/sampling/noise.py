"""The noise that agent and server share: a pure function of (seed, position, token).

Drawing from `p` by the Gumbel-max trick, `argmax(log p + G)`, with the *same* `G` on both sides makes the draft's
draw and the target's draw agree as often as one common random number allows. For that each side must be able to
evaluate `G` at any index, in any order, for just the tokens it considers; so it is a keyed hash, not a generator
with a state. (Coupling by shared Gumbel noise: Daliri et al., arXiv 2408.07978.)

A 64-bit key is derived from seed, position and domain (the SplitMix64 finaliser), and a 32-bit hash of the token is
keyed twice, with the key's halves. The arithmetic is 32 bits wide and wraps around; it is written for numpy and for
torch, and the integers agree to the bit on every side and device.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_GUMBEL", "Domain", "gumbel", "position_keys", "uniform"]

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]

MAX_GUMBEL = 22.2
"""No noise is larger: the smallest uniform drawn is 2**-32."""


class Domain(enum.IntEnum):
    """What a random number is for; numbers of different domains are independent."""

    SHARED = 0
    """The Gumbel noise both sides know."""
    ACCEPT = 1
    """The server's coin of the ratio rule."""
    RESIDUAL = 2
    """The server's draw of a recovered or bonus token under the ratio rule."""
    DRAFT = 3
    """The agent's private draw from `q` under the ratio rule."""


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WEYL = np.uint64(0xD1B54A32D192ED03)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def position_keys(seeds: Sequence[int], positions: Sequence[int], domain: Domain = Domain.SHARED) -> Ints:
    """Derive the keys of some positions.

    Args:
        seeds: one seed a row, 0 <= seed < 2**63.
        positions: one position a row: the index in the stream, prompt included, of the token to be drawn.
        domain: what the numbers are for.

    Returns:
        int32 [rows, 2], for `gumbel` and `uniform`.
    """
    seed = np.asarray(seeds, dtype=np.uint64).reshape(-1)
    position = np.asarray(positions, dtype=np.uint64).reshape(-1)
    stream = _splitmix64(seed * _WEYL + np.uint64(domain) + np.uint64(1))
    keys = _splitmix64(stream + (position + np.uint64(1)) * _GOLDEN)
    words = np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)], axis=-1)
    return words.astype(np.uint32).view(np.int32)


_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)
_TOKEN_MULTIPLIER = 0x1E3779B1
_LANE_MASK = 0x7FFFFFFF


def _hash(keys: Ints, tokens: Ints) -> Ints:
    """Hash tokens under keys: int32 [..., 2] and int32 [...] (broadcast) to non-negative int32 [...]."""
    words = keys.view(np.uint32)
    lanes = tokens.view(np.uint32) * np.uint32(_TOKEN_MULTIPLIER) + words[..., 0]
    # In place, since the whole cost of drawing from a large vocabulary is the memory that these few lines touch.
    scratch = np.empty_like(lanes)
    _mix(lanes, scratch)
    lanes ^= words[..., 1]
    _mix(lanes, scratch)
    lanes &= np.uint32(_LANE_MASK)
    return lanes.view(np.int32)


def _mix(lanes: NDArray[np.uint32], scratch: NDArray[np.uint32]) -> None:
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        lanes ^= np.right_shift(lanes, np.uint32(shift), out=scratch)
        lanes *= np.uint32(multiplier)
    lanes ^= np.right_shift(lanes, np.uint32(15), out=scratch)


def _hash_tensor(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """`_hash` on any device; torch has signed lanes only, so that its shifts are made logical by masking."""
    lanes = _mix_tensor(tokens * _TOKEN_MULTIPLIER + keys[..., 0])
    return _mix_tensor(lanes ^ keys[..., 1]) & _LANE_MASK


def _mix_tensor(lanes: torch.Tensor) -> torch.Tensor:
    lanes = (lanes ^ ((lanes >> 16) & 0xFFFF)) * _MULTIPLIERS[0]
    lanes = (lanes ^ ((lanes >> 15) & 0x1FFFF)) * _MULTIPLIERS[1]
    return lanes ^ ((lanes >> 15) & 0x1FFFF)


def _is_torch(x: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


@overload
def uniform(keys: Ints, tokens: Ints) -> Floats: ...
@overload
def uniform(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor: ...
def uniform(keys: Any, tokens: Any) -> Any:
    """Uniform numbers in (0, 1), one for each (key, token).

    Args:
        keys: int32 [..., 2] from `position_keys`, numpy or torch.
        tokens: int32 [...], broadcast against the keys' leading shape; the same kind of array.

    Returns:
        float32 [...]. Small values keep their full relative precision: they are what makes Gumbel noise large.
    """
    if _is_torch(tokens):
        return ((_hash_tensor(keys, tokens).float() + 0.5) * 2.0**-31).clamp_(max=1 - 2.0**-24)
    u = _hash(keys, tokens).astype(np.float32)
    u += np.float32(0.5)
    u *= np.float32(2.0**-31)
    return np.minimum(u, np.float32(1 - 2.0**-24), out=u)


@overload
def gumbel(keys: Ints, tokens: Ints) -> Floats: ...
@overload
def gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor: ...
def gumbel(keys: Any, tokens: Any) -> Any:
    """Standard Gumbel noise, one number for each (key, token).

    Args:
        keys: int32 [..., 2] from `position_keys`, numpy or torch.
        tokens: int32 [...], broadcast against the keys' leading shape; the same kind of array.

    Returns:
        float32 [...], at most `MAX_GUMBEL`.
    """
    u = uniform(keys, tokens)
    if _is_torch(u):
        return (-u).log1p_().neg_().log_().neg_()
    return -np.log(-np.log1p(-u))
