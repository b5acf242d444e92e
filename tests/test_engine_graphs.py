from __future__ import annotations

import contextlib
import itertools
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from goodspeed.engine import Engine, Segment
from goodspeed.engine.graphs import Bucket, bucket_of, recorder_on
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama, tiny_mistral, tiny_qwen3

ROWS = 12
TOLERANCE = 1e-4
Run = Callable[[], Tensor]


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a GPU cannot record: values that the host reads, shapes that depend on values, data of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [one for one in tree_leaves(args) if isinstance(one, Tensor) and one.dtype == torch.bool]
        if name in {"_local_scalar_dense", "nonzero", "lift_fresh"} or (name == "index" and masks):
            raise RuntimeError(f"{name} is not permitted when stream is capturing")
        return func(*args, **kwargs or {})


class Recorder:
    """Stands for a GPU's: to replay is to call the function again, upon the inputs that stay where they are."""

    def __init__(self, *, replay_s: float = 1.0, eager_s: float = 2.0, fails: bool = False) -> None:
        self.recorded = 0
        self.replayed = 0
        self._times_s = itertools.cycle([eager_s, replay_s])
        self._fails = fails

    def record(self, function: Run) -> Run:
        self.recorded += 1
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        with Recording():  # type: ignore[no-untyped-call]
            function()

        def replay() -> Tensor:
            self.replayed += 1
            return function()

        return replay

    def time_s(self, run: Run) -> float:
        run()
        return next(self._times_s)


def new_engine(model: PreTrainedModel, recorder: Recorder | None = None) -> Engine:
    return Engine(
        model,
        rows=ROWS,
        max_length=CONTEXT,
        layout="padded",
        device="cpu",
        dtype=torch.float32,
        recorder=recorder,
    )


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(count)]


def ragged_round(rng: random.Random, lengths: Sequence[int], rows: Sequence[int]) -> list[Segment]:
    """Some rows, each with a draft of 0 to 5 tokens, all of whose logits or only the last of them are wanted."""
    segments = []
    for row in rows:
        new = min(rng.randint(1, 6), CONTEXT - lengths[row])
        segments.append(Segment(row, lengths[row], tokens(rng, new), rng.randint(1, new)))
    return segments


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3, tiny_mistral])
def test_replayed_rounds_agree_with_eager_ones(build: Callable[[], PreTrainedModel]) -> None:
    rng = random.Random(0)
    recorder = Recorder()
    replaying, eager = new_engine(build(), recorder), new_engine(build())
    lengths = [rng.randint(1, CONTEXT - 40) for _ in range(ROWS)]
    prompts = [Segment(row, 0, tokens(rng, length), 0) for row, length in enumerate(lengths)]
    for served in (replaying, eager):
        served.forward(prompts)
    for _ in range(40):
        # A row that sits out, or that idles in a bucket of more lines, must find its cache as it was.
        rows = rng.sample(range(ROWS), rng.choice([1, 2, 5, 8, ROWS]))
        segments = ragged_round(rng, lengths, rows)
        torch.testing.assert_close(replaying.forward(segments), eager.forward(segments), atol=TOLERANCE, rtol=0)
        for segment in segments:  # some of the draft is accepted, and the rest rolled back
            lengths[segment.row] = min(rng.randint(segment.start, segment.end), CONTEXT - 1)
    assert replaying.graphs is not None
    kinds = {choice.bucket.block for choice in replaying.graphs.choices}
    assert kinds == {True, False}
    assert recorder.replayed > 2 * recorder.recorded  # once timed, once run, and again when it came back


def test_rows_filled_to_their_last_slot_agree() -> None:
    rng = random.Random(1)
    replaying, eager = new_engine(tiny_llama(), Recorder()), new_engine(tiny_llama())
    last = [Segment(row, CONTEXT - 2 - row % 2, tokens(rng, 1 + row % 2), 1) for row in range(5)]
    prompts = [Segment(segment.row, 0, tokens(rng, segment.start), 0) for segment in last]
    for served in (replaying, eager):
        served.forward(prompts)
    for _ in range(3):
        torch.testing.assert_close(replaying.forward(last), eager.forward(last), atol=TOLERANCE, rtol=0)


def test_an_idle_row_may_hold_what_is_no_number() -> None:
    rng = random.Random(2)
    replaying, eager = new_engine(tiny_llama(), Recorder()), new_engine(tiny_llama())
    turns = [Segment(row, 0, tokens(rng, 4), 4) for row in (0, 2)]
    expected = eager.forward(turns)
    module: nn.Module = replaying._model
    with torch.no_grad():
        head = next(module.parameters())
        kept = head.clone()
        head.fill_(float("nan"))
        replaying.forward([Segment(1, 0, tokens(rng, 4), 4)])
        head.copy_(kept)
    for _ in range(3):
        torch.testing.assert_close(replaying.forward(turns), expected, atol=TOLERANCE, rtol=0)


def decoding(rows: int, start: int = 3) -> list[Segment]:
    return [Segment(row, start, [1], 1) for row in range(rows)]


def test_a_bucket_is_captured_when_it_comes_again_and_replayed_from_then_on() -> None:
    recorder = Recorder()
    served = new_engine(tiny_llama(), recorder)
    served.forward(decoding(4))
    assert recorder.recorded == 0
    served.forward(decoding(4))
    assert recorder.recorded == 1
    before = recorder.replayed
    served.forward(decoding(4, start=9))
    assert (recorder.recorded, recorder.replayed) == (1, before + 1)


def test_where_eager_is_the_faster_it_stays_eager() -> None:
    recorder = Recorder(replay_s=2.0, eager_s=1.0)
    served = new_engine(tiny_llama(), recorder)
    for _ in range(5):
        served.forward(decoding(4))
    assert recorder.recorded == 1
    assert recorder.replayed == 1  # as it was timed
    assert served.graphs is not None
    assert [choice.replayed for choice in served.graphs.choices] == [False]


def test_what_cannot_be_recorded_runs_eagerly_and_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(fails=True)
    served = new_engine(tiny_llama(), recorder)
    expected = new_engine(tiny_llama()).forward(decoding(4))
    for _ in range(3):
        torch.testing.assert_close(served.forward(decoding(4)), expected, atol=TOLERANCE, rtol=0)
        served.forward(decoding(8))
    assert recorder.recorded == 1
    assert "not permitted when stream is capturing" in caplog.text


@pytest.mark.parametrize("change", [lambda e: e.begin_anew(ROWS, CONTEXT - 8), lambda e: e.resize(ROWS + 4, CONTEXT)])
def test_other_memory_is_recorded_anew(change: Callable[[Engine], None]) -> None:
    recorder = Recorder()
    served = new_engine(tiny_llama(), recorder)
    served.forward(decoding(4))
    served.forward(decoding(4))
    change(served)
    before = recorder.replayed
    served.forward(decoding(4))
    assert (recorder.recorded, recorder.replayed) == (1, before)
    served.forward(decoding(4))
    assert recorder.recorded == 2


def test_while_paused_everything_runs_eagerly() -> None:
    recorder = Recorder()
    served = new_engine(tiny_llama(), recorder)
    assert served.graphs is not None
    served.graphs.paused = True
    for _ in range(3):
        served.forward(decoding(4))
    assert recorder.recorded == 0


def bucket(*segments: Segment, rows: int = 64) -> Bucket | None:
    return bucket_of(segments, rows, 4096)


def turn(row: int, start: int, new: int) -> Segment:
    return Segment(row, start, [1] * new, new)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        pytest.param([turn(0, 1000, 1)], Bucket(1, 1, 1024, True), id="one"),
        pytest.param([turn(row, 1100, 5) for row in range(5)], Bucket(6, 6, 1280, True), id="neighbours"),
        pytest.param([turn(0, 10, 7), turn(2, 10, 2)], Bucket(3, 8, 128, True), id="a gap"),
        pytest.param([turn(40, 10, 1), turn(3, 10, 1)], Bucket(2, 1, 128, False), id="scattered"),
        pytest.param([turn(63, 4090, 6)], Bucket(1, 6, 4096, False), id="the last slot of the last row"),
        pytest.param([turn(0, 10, 1), Segment(1, 0, [1] * 9, 0)], None, id="a chunk of a prompt"),
        pytest.param([turn(row, 10, 12) for row in range(60)], None, id="much to compute"),
    ],
)
def test_the_smallest_bucket_that_holds_a_pass(segments: list[Segment], expected: Bucket | None) -> None:
    assert bucket(*segments) == expected


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda x: x[x > 0], id="a mask"),
        pytest.param(lambda x: x.amax().item(), id="a value"),
        pytest.param(lambda x: x + torch.tensor([1.0]), id="data of the host"),
    ],
)
def test_the_stand_in_refuses_what_a_gpu_would(run: Callable[[Tensor], object]) -> None:
    recording = Recording()  # type: ignore[no-untyped-call]
    with recording, pytest.raises(RuntimeError, match="not permitted"):
        run(torch.ones(3))


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert recorder_on(torch.device("cpu")) is None


class Cuda:
    """As much of `torch.cuda` as a recorder needs, with its rule that a pool which all graphs have left is gone."""

    def __init__(self) -> None:
        self.pools = 0
        self.graphs: list[weakref.ref[Any]] = []
        self._left: set[int] = set()

    def replace(self, patch: pytest.MonkeyPatch) -> None:
        cuda = self

        class CUDAGraph:
            pool = 0

            def __del__(self) -> None:
                others = [other for ref in cuda.graphs if (other := ref()) is not None]
                if all(other.pool != self.pool for other in others):
                    cuda._left.add(self.pool)

            def replay(self) -> None: ...

        @contextlib.contextmanager
        def graph(made: Any, *, pool: int, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            if pool in self._left:
                raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
            made.pool = pool
            self.graphs.append(weakref.ref(made))
            yield

        for name, instead in {
            "CUDAGraph": CUDAGraph,
            "Stream": mock.MagicMock,
            "current_stream": mock.MagicMock,
            "device": lambda _device: contextlib.nullcontext(),
            "graph": graph,
            "graph_pool_handle": self._new_pool,
            "stream": lambda _stream: contextlib.nullcontext(),
            "synchronize": lambda _device: None,
        }.items():
            patch.setattr(torch.cuda, name, instead)

    def _new_pool(self) -> int:
        self.pools += 1
        return self.pools


def test_graphs_share_a_pool_and_one_that_all_have_left_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.replace(monkeypatch)
    recorder = recorder_on(torch.device("cuda", 0))
    assert recorder is not None
    calls: list[None] = []

    def run() -> Tensor:
        calls.append(None)
        return torch.ones(1)

    kept = [recorder.record(run), recorder.record(run)]
    assert (cuda.pools, len(calls)) == (1, 6), "two to warm up, and one that is recorded"
    assert torch.equal(kept[0](), torch.ones(1))
    assert len(calls) == 6, "what is replayed is not called"
    kept.clear()
    recorder.record(run)
    assert cuda.pools == 2
