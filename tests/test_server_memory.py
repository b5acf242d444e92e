"""What a server will take, computed before it is taken, is what the engine then takes; what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)
from typer.testing import CliRunner

from goodspeed.engine import Engine, Layout, Segment
from goodspeed.errors import InvalidRequest
from goodspeed_server import target
from goodspeed_server.cli import app
from goodspeed_server.memory import Footprint, kv_bytes_per_token, rows_that_fit
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings
from goodspeed_server.target import engine_of
from tests.serving import tiny_settings, tiny_tokenizer
from tests.test_engine_graphs import Recorder
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama, tiny_mistral, tiny_qwen3

Build = Callable[[], PreTrainedModel]
GIB = 2**30


def one_kv_head() -> PreTrainedModel:
    return tiny_llama(num_key_value_heads=1, head_dim=16)


def as_many_kv_heads_as_heads() -> PreTrainedModel:
    """Of a configuration that does not speak of key-value heads."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=CONTEXT,
        )
    )  # fmt: skip


def latent() -> PreTrainedModel:
    """Keys and values of different size, which transformers' own cache keeps compressed, and a slab cannot."""
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
            topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6,
            first_k_dense_replace=1, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def windows_and_none() -> PreTrainedModel:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=20, sliding_window=7, max_position_embeddings=CONTEXT,
            layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip


def of_type(build: Build, dtype: torch.dtype) -> Any:
    model: Any = build()
    return model.to(dtype)


# By hand: layers, key-value heads, and the sizes of a key and of a value.
BY_HAND: list[tuple[Build, tuple[int, int, int, int]]] = [
    (tiny_llama, (2, 2, 8, 8)),
    (tiny_qwen3, (2, 2, 8, 8)),  # a window saves no slots
    (tiny_mistral, (2, 2, 8, 8)),
    (one_kv_head, (2, 1, 16, 16)),
    (as_many_kv_heads_as_heads, (3, 4, 12, 12)),
    (latent, (2, 4, 12, 6)),
    (windows_and_none, (4, 2, 20, 20)),
]
every_model = pytest.mark.parametrize(("build", "shape"), BY_HAND)


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_bytes_are_those_of_its_keys_and_values(
    build: Build, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    layers, kv_heads, key_dim, value_dim = shape
    model = of_type(build, dtype)
    token_bytes = kv_bytes_per_token(model)
    assert token_bytes == layers * kv_heads * (key_dim + value_dim) * dtype.itemsize
    engine = Engine(model, rows=3, max_length=20, layout="packed", device="cpu", dtype=dtype)
    assert engine.kv_bytes_per_token == token_bytes
    assert (
        engine.kv_bytes == 3 * 20 * token_bytes == Footprint.of(model, token_bytes, RoundSettings()).slab_bytes(3, 20)
    )


def test_a_slab_takes_of_the_machine_what_was_computed() -> None:
    """Every page of it is written to, since a system gives a page only then.

    A layer's keys are 48 MiB: less might come of what the process had and gave up, and take nothing of the machine.
    """
    model, rows, length = tiny_llama(max_position_embeddings=2**16), 12, 2**16
    computed = rows * length * kv_bytes_per_token(model)
    engine = Engine(model, rows=1, max_length=1, layout="packed", device="cpu", dtype=torch.float32)
    resident = psutil.Process().memory_info
    before = resident().rss
    engine.resize(rows, length)
    with torch.inference_mode():
        for row in range(rows):
            engine._slab.clear(row, 0, length)
    taken = resident().rss - before
    assert computed == 3 * 2**26
    assert taken == pytest.approx(computed, rel=0.1)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what operators make, until nobody holds it any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        weak: Any = StorageWeakRef
        before = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        made = func(*args, **(kwargs or {}))
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        for tensor in tree_leaves(made):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in before:
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = (weak(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return made


@every_model
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("passes", ["verification", "chunk"])
def test_a_pass_takes_no_more_than_was_computed(
    build: Build, shape: object, layout: Layout, dtype: torch.dtype, passes: str
) -> None:
    """What it takes beyond that is within a few operators, and there for a moment."""
    model = of_type(build, dtype)
    rows, length = 4, CONTEXT
    footprint = Footprint.of(model, kv_bytes_per_token(model), RoundSettings(capacity=8 * rows, prefill_chunk=1))
    engine = Engine(model, rows=rows, max_length=length, layout=layout, device="cpu", dtype=dtype)
    if passes == "verification":
        work = [Segment(row, length - 9, [1] * 9, logits=9) for row in range(rows)]
    else:
        work = [Segment(2, length - 37, [1] * 37, logits=0)]
    with PeakMemory() as memory_:
        engine.forward(work)
    allowed = footprint.bytes(rows, length) - footprint.slab_bytes(rows, length)
    assert memory_.peak <= allowed
    if passes == "verification":
        assert memory_.peak >= allowed / 6, "and what is set aside is no multiple of what is needed"


footprints = st.builds(
    lambda token, run, seen, per_row, fixed, graphs: Footprint(
        token, run, seen, lambda rows: per_row * rows + fixed, graphs
    ),
    st.integers(1, 10**5),
    st.integers(0, 10**6),
    st.integers(0, 100),
    st.integers(0, 65),
    st.integers(0, 512),
    st.integers(0, 10**8),
)


@given(st.integers(1, 5000), footprints, st.integers(0, 10**11), st.integers(1, 64))
def test_the_streams_chosen_are_the_most_that_would_have_been_granted(
    max_length: int, footprint: Footprint, free: int, at_most: int
) -> None:
    def granted(streams: int) -> bool:
        try:
            return rows_that_fit(streams, max_length, footprint, free) == streams
        except InvalidRequest:
            return False

    if granted(1):
        chosen = rows_that_fit(None, max_length, footprint, free, at_most=at_most)
        assert granted(chosen)
        assert chosen == at_most or not granted(chosen + 1)
    else:
        with pytest.raises(InvalidRequest) as refused:
            rows_that_fit(None, max_length, footprint, free, at_most=at_most)
        assert refused.value.code == "kv_memory"


@given(st.integers(1, 200), st.integers(2, 2000), footprints, st.integers(0, 10**9))
def test_the_ways_out_that_are_named_are_the_largest_there_are(
    streams: int, max_length: int, footprint: Footprint, free: int
) -> None:
    """Among all of them, tried one by one."""

    def fits(rows: int, length: int) -> bool:
        return footprint.bytes(rows, length) <= int(0.9 * free)

    most_streams = max((rows for rows in range(1, streams + 1) if fits(rows, max_length)), default=0)
    longest = max((length for length in range(1, max_length + 1) if fits(streams, length)), default=0)
    if most_streams == streams:
        assert rows_that_fit(streams, max_length, footprint, free) == streams
        return
    with pytest.raises(InvalidRequest) as refused:
        rows_that_fit(streams, max_length, footprint, free)
    said = str(refused.value)
    assert (f"--max-streams {most_streams} of that length" in said) == (most_streams > 0)
    assert (f"--max-length {longest} for {streams} stream" in said) == (longest > 1)
    assert ("a smaller target" in said) == (most_streams == 0 and longest <= 1)


@given(st.integers(1, 64), st.integers(1, 5000), footprints, st.integers(0, 10**11))
def test_a_pass_may_carry_the_most_tokens_that_the_rows_leave_memory_for(
    rows: int, length: int, footprint: Footprint, free: int
) -> None:
    each = footprint.run_bytes + length * footprint.seen_bytes
    assume(each)
    tokens = footprint.pass_tokens(rows, length, free)
    left = int(0.9 * free) - footprint.slab_bytes(rows, length) - footprint.graph_bytes
    assert tokens >= 1
    assert tokens * each <= left or tokens == 1, "one is tried in any case"
    assert (tokens + 1) * each > left
    if footprint.bytes(rows, length) <= int(0.9 * free):
        assert tokens >= footprint.largest_pass(rows), "no pass is cut that was set memory aside for"


def test_a_server_refuses_to_start_with_more_than_there_is() -> None:
    with pytest.raises(InvalidRequest, match="GiB for keys and values"):
        VerificationServer(tiny_settings(max_streams=10**9), tiny_llama(), tiny_tokenizer())


def test_a_command_that_asks_for_too_much_ends_with_both_ways_out(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_llama(max_position_embeddings=131_072)
    model.save_pretrained(tmp_path)
    for name, content in tiny_tokenizer().items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(target, "free_bytes", lambda _device: 20 * GIB)
    made = []
    monkeypatch.setattr(Engine, "resize", lambda *_: made.append("a slab"))
    result = CliRunner().invoke(
        app,
        ["run", "--port", "0", "--model", str(tmp_path), "--max-streams", "10000", "--max-length", "131072"],
    )
    assert (result.exit_code, result.stdout, made) == (2, "", [])
    said = result.stderr
    assert "goodspeed-server: 10000 streams of 131072 tokens need 312.50 GiB for keys and values and " in said
    assert "and 18.00 GiB can be used: choose --max-streams " in said
    assert " of that length, or --max-length " in said
    assert "for 10000 streams" in said
    assert "Traceback" not in said


def recorded_upon(monkeypatch: pytest.MonkeyPatch, graph_bytes: int) -> tuple[Footprint, Callable[..., Engine]]:
    """What a tiny target takes, and how to make its engine, whose recorded passes take so much; ten rows fit."""
    model, rounds = tiny_llama(), RoundSettings(prefill_chunk=1)
    footprint = Footprint.of(model, kv_bytes_per_token(model), rounds)
    free = int(footprint.bytes(10, CONTEXT) / 0.9) + 1
    beside_slab = free - footprint.slab_bytes(10, CONTEXT)
    left = iter([free, beside_slab, beside_slab - graph_bytes])
    monkeypatch.setattr(target, "free_bytes", lambda _device: next(left, 0))
    return replace(footprint, graph_bytes=graph_bytes), partial(Engine, recorder=Recorder())


def test_without_a_number_of_streams_they_make_room_for_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where nothing is recorded, no room is made."""
    for graph_bytes in (0, 1, 10**5):
        footprint, make_engine = recorded_upon(monkeypatch, graph_bytes)
        settings = ServerSettings(layout="padded", rounds=RoundSettings(prefill_chunk=1))
        engine, measured, pass_tokens = engine_of(settings, tiny_llama(), None, make_engine)
        free = int(replace(footprint, graph_bytes=0).bytes(10, CONTEXT) / 0.9) + 1
        assert engine.rows == rows_that_fit(None, CONTEXT, footprint, free)
        assert (engine.rows < 10) == (graph_bytes > 0)
        assert max(sample.rows for sample in measured) == engine.rows
        assert pass_tokens == footprint.pass_tokens(engine.rows, CONTEXT, free)


def test_streams_that_leave_no_room_for_what_is_recorded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    footprint, make_engine = recorded_upon(monkeypatch, 10**5)
    settings = ServerSettings(layout="padded", max_streams=10, rounds=RoundSettings(prefill_chunk=1))
    with pytest.raises(InvalidRequest, match=r"for the largest pass \(and 0\.00 GiB for recorded ones\)") as refused:
        engine_of(settings, tiny_llama(), None, make_engine)
    free = int(replace(footprint, graph_bytes=0).bytes(10, CONTEXT) / 0.9) + 1
    assert f"choose --max-streams {rows_that_fit(None, CONTEXT, footprint, free)} " in str(refused.value)
