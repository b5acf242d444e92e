from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from goodspeed.engine import Engine, Layout, Segment
from goodspeed.errors import EngineFull, UnsupportedModel
from tests.tiny_models import CONTEXT, VOCAB, WINDOW, tiny_llama, tiny_mistral, tiny_qwen3

ROWS = 3
TOLERANCE = 1e-4
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")
BUILDERS: tuple[Callable[[], PreTrainedModel], ...] = (tiny_llama, tiny_qwen3, tiny_mistral)

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_model = pytest.mark.parametrize("build", BUILDERS)


@cache
def plain(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The same weights as the engine's, with transformers' own attention."""
    return build()


@cache
def engine(build: Callable[[], PreTrainedModel], layout: Layout) -> Engine:
    """One engine for all examples, so that each finds the slab as the last one left it."""
    return new_engine(build(), layout)


def new_engine(model: PreTrainedModel, layout: Layout = "packed", **changes: Any) -> Engine:
    options: dict[str, Any] = {"rows": ROWS, "max_length": CONTEXT, "device": "cpu", "dtype": torch.float32}
    return Engine(model, layout=layout, **options | changes)


@torch.inference_mode()
def full_forward(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    return cast(Tensor, model(torch.tensor([tokens])).logits)[0]


@dataclass(frozen=True)
class Turn:
    """What a row does in a round: `draft` tokens of which `accepted` stand, or a chunk of what it has not run yet."""

    draft: int
    accepted: int
    chunk: int | None
    reopen: bool


@dataclass
class Row:
    tokens: list[int]
    cached: int = 0


TURNS = st.builds(
    Turn,
    draft=st.integers(0, 6),
    accepted=st.integers(0, 6),
    chunk=st.none() | st.integers(1, 2 * WINDOW),
    reopen=st.sampled_from([False, False, False, True]),
)
ROUNDS = st.lists(
    st.tuples(st.permutations(range(ROWS)), st.lists(st.none() | TURNS, min_size=ROWS, max_size=ROWS)),
    min_size=1,
    max_size=8,
)


@every_model
@every_layout
@settings(max_examples=10, deadline=None)
@given(rounds=ROUNDS, seed=st.integers(0, 2**32 - 1))
def test_ragged_rounds_agree_with_a_full_forward(
    build: Callable[[], PreTrainedModel],
    layout: Layout,
    rounds: list[tuple[list[int], list[Turn | None]]],
    seed: int,
) -> None:
    rng = random.Random(seed)

    def draw(count: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(count)]

    rows = [Row(draw(rng.randint(1, 3 * WINDOW))) for _ in range(ROWS)]
    for order, turns in rounds:
        segments: list[Segment] = []
        expected = [torch.empty(0, VOCAB)]
        for index in order:
            turn, row = turns[index], rows[index]
            if turn is None:
                continue
            if turn.reopen or len(row.tokens) + turn.draft + 1 >= CONTEXT:
                row = rows[index] = Row(draw(rng.randint(1, 3 * WINDOW)))
            pending = row.tokens[row.cached :]
            if turn.chunk is not None and turn.chunk < len(pending):
                segments.append(Segment(index, row.cached, pending[: turn.chunk], logits=0))
                row.cached += turn.chunk
                continue
            drafted = draw(turn.draft)
            segments.append(Segment(index, row.cached, pending + drafted, logits=len(drafted) + 1))
            expected.append(full_forward(plain(build), row.tokens + drafted)[-len(drafted) - 1 :])
            row.tokens += drafted[: turn.accepted] + draw(1)
            row.cached = len(row.tokens) - 1
        if segments:
            logits = engine(build, layout).forward(segments)
            torch.testing.assert_close(logits, torch.cat(expected), atol=TOLERANCE, rtol=0)


@every_model
@every_layout
def test_a_row_filled_to_its_last_slot(build: Callable[[], PreTrainedModel], layout: Layout) -> None:
    rng = random.Random(0)
    tokens = [rng.randrange(VOCAB) for _ in range(CONTEXT)]
    served = engine(build, layout)
    served.forward([Segment(0, 0, tokens[:-3], logits=0)])
    # Beside a longer segment the full row is padded at its end.
    logits = served.forward([Segment(0, CONTEXT - 3, tokens[-3:], logits=3), Segment(2, 0, tokens[:20], logits=1)])
    expected = torch.cat([full_forward(plain(build), tokens)[-3:], full_forward(plain(build), tokens[:20])[-1:]])
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@every_model
@every_layout
def test_speculative_greedy_decoding_is_generate(build: Callable[[], PreTrainedModel], layout: Layout) -> None:
    rng = random.Random(7)
    prompts = [[rng.randrange(VOCAB) for _ in range(length)] for length in (1, 9, 30)]
    wanted = [generate(plain(build), prompt, 24) for prompt in prompts]
    served = engine(build, layout)
    streams = [list(prompt) for prompt in prompts]
    cached = [0] * ROWS
    while active := [row for row in range(ROWS) if len(streams[row]) < len(wanted[row])]:
        drafts: list[list[int]] = []
        segments: list[Segment] = []
        for row in active:
            coming = wanted[row][len(streams[row]) : -1][: rng.randint(0, 5)]
            drafts.append([token if rng.random() < 0.7 else rng.randrange(VOCAB) for token in coming])
            new = streams[row][cached[row] :] + drafts[-1]
            segments.append(Segment(row, cached[row], new, logits=len(drafts[-1]) + 1))
        choices = iter(served.forward(segments).argmax(-1).tolist())
        for row, draft in zip(active, drafts, strict=True):
            drawn = [next(choices) for _ in range(len(draft) + 1)]
            accepted = next((i for i, token in enumerate(draft) if token != drawn[i]), len(draft))
            streams[row] += drawn[: accepted + 1]
            cached[row] = len(streams[row]) - 1
    assert streams == wanted


def generate(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    generating = cast(Any, model)
    output = generating.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return cast(list[int], output[0].tolist())


@every_layout
def test_a_pass_of_prompt_chunks_gives_no_logits(layout: Layout) -> None:
    logits = engine(tiny_llama, layout).forward([Segment(0, 0, [1, 2, 3], logits=0), Segment(1, 0, [4], logits=0)])
    assert logits.shape == (0, VOCAB)


MANY = 16


def mixed_pass(rng: random.Random, chunked: Sequence[int] = (), long: int = 0) -> list[list[int]]:
    """New tokens by row: prompt chunks of `long` tokens in some rows, a token and a draft of 0 to 6 in the others."""
    counts = [long if row in chunked else 1 + rng.randint(0, 6) for row in range(MANY)]
    return [[rng.randrange(VOCAB) for _ in range(count)] for count in counts]


def forward_shapes(model: PreTrainedModel) -> list[tuple[int, ...]]:
    """A list to which every further forward of the model adds its shape, [lines, width]."""
    shapes: list[tuple[int, ...]] = []
    embedding: nn.Module = model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


@every_model
@every_layout
def test_chunks_among_drafts_agree_with_a_full_forward(build: Callable[[], PreTrainedModel], layout: Layout) -> None:
    rng = random.Random(3)
    served = new_engine(build(), layout, rows=MANY)
    # Rows 2 and 9 bring 70 tokens at once: the first wants no logits, the other those of its last three.
    texts = mixed_pass(rng)
    served.forward([Segment(row, 0, text, logits=0) for row, text in enumerate(texts)])
    for mixed in (True, False):  # the second pass reads what the first one cached
        news = mixed_pass(rng, (2, 9) if mixed else (), 70)
        segments: list[Segment] = []
        expected: list[Tensor] = []
        for row in rng.sample(range(MANY), MANY):
            logits = {2: 0, 9: 3}.get(row, len(news[row])) if mixed else len(news[row])
            segments.append(Segment(row, len(texts[row]), news[row], logits))
            texts[row] = texts[row] + news[row]
            expected.append(full_forward(plain(build), texts[row])[len(texts[row]) - logits :])
        torch.testing.assert_close(served.forward(segments), torch.cat(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunked", [(0,), (7,), (15,)])
def test_a_chunk_does_not_widen_the_drafts_beside_it(chunked: tuple[int, ...]) -> None:
    model = tiny_llama()
    served = new_engine(model, "padded", rows=MANY)
    shapes = forward_shapes(model)
    news = mixed_pass(random.Random(4), chunked, CONTEXT)
    drafts = [len(new) for row, new in enumerate(news) if row not in chunked]
    served.forward([Segment(row, 0, new, 0 if row in chunked else len(new)) for row, new in enumerate(news)])
    own_padding = len(drafts) * max(drafts) - sum(drafts)
    assert sum(lines * width for lines, width in shapes) <= sum(map(len, news)) + own_padding
    assert (len(drafts), max(drafts)) in shapes


def test_ragged_drafts_stay_one_padded_forward() -> None:
    model = tiny_llama()
    served = new_engine(model, "padded", rows=MANY)
    shapes = forward_shapes(model)
    served.forward([Segment(row, 0, [1] * (9 if row == 5 else 1), logits=1) for row in range(MANY)])
    assert shapes == [(MANY, 9)]


@every_layout
def test_in_half_precision_logits_are_float32_and_near(layout: Layout) -> None:
    tokens = list(range(20))
    model = tiny_llama()
    served = new_engine(model, layout, dtype=torch.bfloat16)
    logits = served.forward([Segment(0, 0, tokens, logits=20)])
    assert logits.dtype == torch.float32
    assert served.kv_bytes_per_token == engine(tiny_llama, layout).kv_bytes_per_token // 2
    # Rotary frequencies rounded to bfloat16 would turn distant tokens by whole radians.
    assert cast(Any, model).model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(logits, full_forward(plain(tiny_llama), tokens), atol=0.2, rtol=0)


def test_kv_memory() -> None:
    served = engine(tiny_llama, "packed")
    layers, kv_heads, head_dim, float_bytes = 2, 2, 8, 4
    assert served.kv_bytes_per_token == layers * 2 * kv_heads * head_dim * float_bytes
    assert served.kv_bytes == ROWS * CONTEXT * served.kv_bytes_per_token
    assert served.vocab_size == VOCAB


def test_rows_are_allocated_lowest_first_until_the_slab_is_full() -> None:
    served = new_engine(tiny_llama())
    assert [served.allocate() for _ in range(ROWS)] == [0, 1, 2]
    assert served.free_rows == 0
    with pytest.raises(EngineFull, match="all 3 rows"):
        served.allocate()
    served.release(2)
    served.release(0)
    assert served.free_rows == 2
    assert served.allocate() == 0


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([], id="nothing"),
        pytest.param([Segment(0, 0, [], 0)], id="no tokens"),
        pytest.param([Segment(0, 0, [1], 2)], id="more logits than tokens"),
        pytest.param([Segment(ROWS, 0, [1], 1)], id="no such row"),
        pytest.param([Segment(0, CONTEXT, [1], 1)], id="beyond the row"),
        pytest.param([Segment(0, 0, [VOCAB], 1)], id="beyond the vocabulary"),
        pytest.param([Segment(0, 0, [1], 1), Segment(0, 1, [2], 1)], id="a row twice"),
    ],
)
def test_a_broken_invariant_is_an_assertion(segments: list[Segment]) -> None:
    with pytest.raises(AssertionError):
        engine(tiny_llama, "packed").forward(segments)


SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2))


def lfm2() -> PreTrainedModel:
    return Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))


def llama4() -> PreTrainedModel:
    return Llama4ForCausalLM(Llama4TextConfig(**SMALL, head_dim=8, num_local_experts=2, attention_chunk_size=8))


def gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8))


def gpt_oss() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, rope_parameters=rope)
    return GptOssForCausalLM(config)


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (mamba, "MambaForCausalLM has layers of the kind linear_attention"),
        (lfm2, "Lfm2ForCausalLM has layers of the kind conv"),
        (llama4, "Llama4ForCausalLM has layers of the kind chunked_attention"),
        (gemma2, "Gemma2Attention uses soft-capped scores"),
        (gpt_oss, "GptOssAttention uses attention sinks"),
        (t5, "T5ForConditionalGeneration is not a decoder"),
    ],
)
def test_what_slots_cannot_hold_is_refused_by_name(build: Callable[[], PreTrainedModel], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        new_engine(build())


def test_rows_longer_than_the_models_positions_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=f"a maximum length of {CONTEXT} or less"):
        new_engine(tiny_llama(), max_length=CONTEXT + 1)


def test_rows_that_would_switch_a_long_rope_are_refused() -> None:
    factors = [1.0] * 4
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 2.0,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": CONTEXT // 2,
    }
    with pytest.raises(UnsupportedModel, match=f"a maximum length of {CONTEXT // 2} or less"):
        new_engine(tiny_llama(rope_parameters=rope))
