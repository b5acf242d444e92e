"""What a server takes beside the target's weights, found out before it takes it: how many streams can be admitted.

The slab takes `rows * length * token_bytes`, all of it from the start. A pass takes something for each of its tokens,
and something more for each slot that a token may see: the mask. A server that cannot run the pass that
`RoundSettings.largest_pass` says does not start; `Fitting` runs in pieces whatever is larger than what then fits.
What a GPU's recorded passes take is known once some have been recorded, while the engine warms up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest
from goodspeed.quantisation import largest_weight
from goodspeed_server.settings import AUTO_MAX_STREAMS, RoundSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Footprint", "kv_bytes_per_token", "rows_that_fit"]

_USABLE = 0.9
"""The share of the free memory that may be taken: allocators leave gaps, and links and texts want some too."""
_LOGITS_ON_CPU = 2
"""How many copies of a pass's logits there are at a time: what is drawn is drawn from a few rows at a time,"""
_LOGITS_ON_DEVICE = 6
"""and elsewhere from all of them: scaled, noise, odds, and what becomes of them."""
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """What rows and their length cost, bytes."""

    token_bytes: int
    """A slot of the slab: the keys and values of one token in all layers."""
    run_bytes: int = 0
    """Each token of a pass: its activations in the layer that has the most, and its logits."""
    seen_bytes: int = 0
    """Each token of a pass, for each slot: what hides it or not."""
    largest_pass: Callable[[int], int] = lambda rows: 0
    """Tokens, by rows."""
    graph_bytes: int = 0
    """What was recorded of passes, to be replayed; nothing on a CPU."""
    expanded_bytes: int = 0
    """A pass, however many tokens it has: the largest quantised weight, written out to be multiplied."""

    @classmethod
    def of(cls, model: PreTrainedModel, token_bytes: int, rounds: RoundSettings) -> Footprint:
        """A target's, for passes as the operator wants them.

        Args:
            model: the target. A rank that has a part of it is taken to need in a pass what the whole would.
            token_bytes: from `kv_bytes_per_token`.
            rounds: which passes there are.
        """
        text: Any = model.config.get_text_config()
        size = model.dtype.itemsize
        copies = _LOGITS_ON_CPU if model.device.type == "cpu" else _LOGITS_ON_DEVICE
        logits = text.vocab_size * (copies * _FLOAT32_BYTES + (size if size < _FLOAT32_BYTES else 0))
        heads, width = text.num_attention_heads, text.hidden_size
        key_dim, value_dim = _head_dims(text)
        experts = getattr(text, "num_experts_per_tok", None) or 0
        dense = getattr(text, "intermediate_size", None) or 4 * width
        inner = max(dense, experts * (getattr(text, "moe_intermediate_size", None) or 0))
        # What came in, normalised, once more in float32; and then queries, keys and values, as they are, turned and
        # folded, or a gate, its activation and what they multiply.
        layer = 4 * width * size + 2 * width * _FLOAT32_BYTES + max(3 * inner, 6 * heads * key_dim) * size
        groups = heads // (getattr(text, "num_key_value_heads", None) or heads)
        kinds = len(set(getattr(text, "layer_types", None) or ["full_attention"]))
        seen = groups * (kinds * size + 2)
        if key_dim != value_dim:  # for which there is no fused kernel: the scores are written out
            seen += 2 * heads * _FLOAT32_BYTES
        expanded = largest_weight(model) * size
        return cls(token_bytes, logits + layer, seen, rounds.largest_pass, expanded_bytes=expanded)

    def bytes(self, rows: int, length: int) -> int:
        """So many rows of so many tokens, the largest pass over them, and what is recorded of passes."""
        return self.slab_bytes(rows, length) + self.graph_bytes + self.pass_bytes(rows, length)

    def pass_bytes(self, rows: int, length: int) -> int:
        """The largest pass alone."""
        return self.largest_pass(rows) * (self.run_bytes + length * self.seen_bytes) + self.expanded_bytes

    def pass_tokens(self, rows: int, length: int, free: int) -> int:
        """How many tokens one pass may carry on what so many rows of such a length leave of so many free bytes."""
        left = int(_USABLE * free) - self.slab_bytes(rows, length) - self.graph_bytes - self.expanded_bytes
        return max(1, left // (self.run_bytes + length * self.seen_bytes))

    def slab_bytes(self, rows: int, length: int) -> int:
        """The rows alone."""
        return rows * length * self.token_bytes


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """The keys and values of one token in all layers, bytes: as the model hands them to its attention.

    One token is run, which no reading of configurations can replace: latent attention, for one, is kept expanded. Of
    a target that ranks share it is this rank's part of them, and all ranks have to run it together.

    Raises:
        UnsupportedModel: the engine cannot serve this architecture.
    """
    one = Engine(model, rows=1, max_length=1, layout="packed", device=model.device, dtype=model.dtype, lean=False)
    return one.kv_bytes_per_token


def rows_that_fit(
    wanted: int | None, max_length: int, footprint: Footprint, free: int, *, at_most: int = AUTO_MAX_STREAMS
) -> int:
    """Settle the number of streams.

    Args:
        wanted: streams the operator asked for; None: as many as fit, up to `at_most`.
        max_length: tokens each may hold.
        footprint: of the target.
        free: bytes, from `free_bytes`.
        at_most: streams that are enough where nobody asked for a number.

    Raises:
        InvalidRequest: so many do not fit, or not even one; it names the largest configurations that do.
    """
    usable = int(_USABLE * free)
    streams = _most(wanted or at_most, lambda rows: footprint.bytes(rows, max_length) <= usable)
    if streams >= (wanted or 1):
        return streams
    wanted = wanted or 1
    length = _most(max_length, lambda length: footprint.bytes(wanted, length) <= usable)
    ways = []
    if streams:
        ways.append(f"--max-streams {streams} of that length")
    if length > 1:
        ways.append(f"--max-length {length} for {wanted} stream{'s' * (wanted > 1)}")
    slab, largest = footprint.slab_bytes(wanted, max_length), footprint.pass_bytes(wanted, max_length)
    recorded = f" (and {_gib(footprint.graph_bytes)} for recorded ones)" if footprint.graph_bytes else ""
    raise InvalidRequest(
        f"{wanted} stream{'s' * (wanted > 1)} of {max_length} tokens need {_gib(slab)} for keys and values and "
        f"{_gib(largest)} for the largest pass{recorded}, and {_gib(usable)} can be used: "
        f"choose {', or '.join(ways) or 'a smaller target, or a smaller --prefill-chunk'}",
        code="kv_memory",
    )


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to a limit that fits, where whatever is smaller does too; 0 if not even 1 does."""
    fitting, beyond = 0, limit + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if fits(middle):
            fitting = middle
        else:
            beyond = middle
    return fitting


def _head_dims(text: Any) -> tuple[int, int]:
    """Of keys, and of values."""
    if (latent := getattr(text, "qk_nope_head_dim", None)) is not None:
        return latent + text.qk_rope_head_dim, text.v_head_dim
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return head_dim, head_dim


def _gib(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB"
