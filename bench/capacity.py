"""How many streams a server carries at 10 tokens a second each: plain decoding, co-located speculation, and ours.

The real engine, verifier, scheduler and bundled models, T = 0, every stream in every pass, no network: what is measured
is what a second of the server's busy time is worth. Drafts from the edge cost the server nothing; co-located ones are
made by the same engine code in one batch, and their time counts; their lengths are swept. Prompts are cached before the
measuring begins. Policies take turns; a ratio is of one turn's two runs, the median over the turns.
`python -m bench.capacity [--json FILE]`
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed.engine import Engine, Segment
from goodspeed.estimation import Goodput, HitOrMiss
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed.scheduling import Demand, FixedS, PlainDecoding, Scheduler, SecondsSched, Timing
from goodspeed.timing import EngineMeter, PassCost, PassSample
from goodspeed_agent.lookahead import Calibration
from goodspeed_server.calibration import measure_passes
from goodspeed_server.verifier import Pass, Turn, Verifier

__all__ = ["main"]

Floats = NDArray[np.float64]

RATE = 10.0
"""Tokens a second that every stream is to get."""
MAX_LENGTH = 256
MAX_DRAFT = 8
PLAIN, OURS = "plain decoding", "ours"
CO_LOCATED = (1, 2, 4)


@dataclass(frozen=True)
class Policy:
    """Who decides how much is drafted, and whose time drafting takes."""

    name: str
    scheduler: Scheduler
    co_located: bool = False


@dataclass(eq=False)
class Stream:
    """One stream; its row is the same in both engines."""

    row: int
    tokens: list[int]
    drafter_has: int
    """How many of the tokens stand in the draft's slab."""
    estimator: HitOrMiss = field(default_factory=HitOrMiss)
    goodput: Goodput = field(default_factory=lambda: Goodput(0.0, RATE))
    drafted: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)


class Bench:
    """Both models and their slabs, with the prompts in them, a stream each."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._target, self._draft = (
            Engine(
                load_model(name, device="cpu", dtype="float32"),
                rows=len(prompts), max_length=MAX_LENGTH, layout="packed", device="cpu", dtype=torch.float32,
            )
            for name in (DEFAULT_TARGET, DEFAULT_DRAFT)
        )  # fmt: skip
        self._verifier = Verifier(self._target, "coupled")
        self._measured = measure_passes(self._target)
        self._clock = self._target.busy_clock
        self._prompts = {self._target.allocate(): prompt for prompt in prompts}
        cached = [Segment(row, 0, prompt[:-1], 0) for row, prompt in self._prompts.items()]
        self._target.forward(cached)
        self._draft.forward(cached)

    def tokens_per_busy_s(self, policy: Policy, passes: int) -> float:
        """Serve all prompts at once for some passes; the first quarter of them does not count."""
        streams = [Stream(row, list(prompt), len(prompt) - 1) for row, prompt in self._prompts.items()]
        meter, calibration = EngineMeter(PassCost(self._measured)), Calibration()
        budgets, chances = [0] * len(streams), [0.0] * len(streams)
        busy_s, counted_s, committed = 0.0, 0.0, 0
        for number in range(passes):
            began = self._clock()
            self._draft_all(streams, budgets, chances, calibration)
            drafting_s = (self._clock() - began) if policy.co_located else 0.0
            turns = [
                Turn(stream.row, len(stream.tokens), stream.tokens[-1], stream.drafted, SamplingParams())
                for stream in streams
            ]
            outcome = self._verifier.run(Pass(turns, []))
            pass_s = outcome.forward_s + outcome.judge_s
            meter.observe(PassSample(len(turns), sum(len(turn.drafted) + 1 for turn in turns), pass_s))
            busy_s += drafting_s + pass_s
            for stream, judgement, budget in zip(streams, outcome.judgements, budgets, strict=True):
                self._commit(stream, judgement.accepted, judgement.token, calibration)
                stream.estimator.observe(budget, judgement)
                stream.goodput.observe(judgement.accepted + 1, busy_s)
                committed += (judgement.accepted + 1) * (number >= passes // 4)
            counted_s += (drafting_s + pass_s) * (number >= passes // 4)
            budgets, chances = self._plan(policy.scheduler, streams, meter)
        return committed / counted_s

    def _plan(
        self, scheduler: Scheduler, streams: Sequence[Stream], meter: EngineMeter
    ) -> tuple[list[int], list[float]]:
        """Budgets, and from which chance on a token is worth drafting; edges are as fast as can be."""
        demand = Demand(
            alpha=np.array([stream.estimator.alpha for stream in streams]),
            goodput=np.ones(len(streams)),
            weight=np.ones(len(streams)),
            limit=np.array([min(MAX_DRAFT, MAX_LENGTH - len(stream.tokens) - 1) for stream in streams]),
            timing=Timing(
                rate=np.array([stream.goodput.rate for stream in streams]),
                draft_s=np.zeros(len(streams)),
                turnaround_s=np.zeros(len(streams)),
                engine=meter.load,
            ),
        )
        plan = scheduler.plan(demand, MAX_DRAFT * len(streams))
        if plan.worth_s is None:
            return plan.budgets.tolist(), [0.0] * len(streams)
        chances = np.minimum(meter.load.cost.token_s / plan.worth_s, 1.0)
        return plan.budgets.tolist(), chances.tolist()

    def _draft_all(
        self, streams: Sequence[Stream], budgets: Sequence[int], chances: Sequence[float], calibration: Calibration
    ) -> None:
        """Draft for everybody, a token of all in one batch; whoever's next token is not worth its price drops out."""
        for stream in streams:
            stream.drafted, stream.confidence = [], []
        going_on = [
            (stream, budget, least, 1.0) for stream, budget, least in zip(streams, budgets, chances, strict=True)
        ]
        while going_on := [item for item in going_on if len(item[0].drafted) < item[1]]:
            logits = self._draft.forward([self._fed(stream) for stream, *_ in going_on])
            surest = logits.softmax(-1).max(-1)
            following = []
            for (stream, budget, least, chance), token, confidence in zip(
                going_on, surest.indices.tolist(), surest.values.tolist(), strict=True
            ):
                chance *= calibration.chance(confidence)
                if chance >= least:
                    stream.drafted.append(token)
                    stream.confidence.append(confidence)
                    following.append((stream, budget, least, chance))
            going_on = following

    def _fed(self, stream: Stream) -> Segment:
        """What the draft model has to see for its next token."""
        text = [*stream.tokens, *stream.drafted]
        start, stream.drafter_has = stream.drafter_has, len(text)
        return Segment(stream.row, start, text[start:], 1)

    def _commit(self, stream: Stream, accepted: int, token: int, calibration: Calibration) -> None:
        for number, confidence in enumerate(stream.confidence[: accepted + 1]):
            calibration.observe(confidence, number < accepted)
        kept = len(stream.tokens) + accepted
        stream.tokens += [*stream.drafted[:accepted], token]
        stream.drafter_has = min(stream.drafter_has, kept)


def main(
    streams: Annotated[list[int] | None, typer.Option(help="Loads; may be repeated.")] = None,
    passes: Annotated[int, typer.Option(help="Passes of each policy at each load.")] = 20,
    turns: Annotated[int, typer.Option(help="How often each policy runs at each load.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads of the target.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print tokens per second of busy time, by load and policy, and the load at which everybody still gets 10."""
    torch.set_num_threads(threads)
    loads = streams or [32, 64, 128, 192, 256, 320]
    rates = {policy.name: np.zeros((turns, len(loads))) for policy in _policies()}
    for column, load in enumerate(loads):
        bench = Bench(_prompts(load))
        for turn, policy in itertools.product(range(turns), _policies()):
            rates[policy.name][turn, column] = bench.tokens_per_busy_s(policy, passes)
        del bench
    policies = {name: _figures(loads, measured, rates[PLAIN]) for name, measured in rates.items()}
    _report(loads, policies)
    if as_json:
        figures = {
            "target": DEFAULT_TARGET,
            "draft": DEFAULT_DRAFT,
            "rate": RATE,
            "passes": passes,
            "turns": turns,
            "threads": threads,
        }
        as_json.write_text(json.dumps(figures | {"streams": loads, "policies": policies}, indent=1) + "\n")


def _policies() -> list[Policy]:
    swept = [Policy(f"co-located, S = {length}", FixedS(length), co_located=True) for length in CO_LOCATED]
    return [Policy(PLAIN, PlainDecoding()), *swept, Policy(OURS, SecondsSched())]


def _prompts(count: int) -> list[list[int]]:
    """The bundled prompts, again and again, each time cut a token shorter: so the texts behind them differ."""
    tokenizer = Tokenizer.from_str(tokenizer_files(DEFAULT_TARGET)["tokenizer.json"].decode())
    encoded = [tokenizer.encode(prompt.text).ids for prompt in bundled_prompts()]
    return [_cut(encoded[number % len(encoded)], number // len(encoded)) for number in range(count)]


def _cut(ids: list[int], by: int) -> list[int]:
    return ids[: max(4, len(ids) - by)]


class Figures(TypedDict):
    """Of one policy; the lists are by load."""

    tokens_per_busy_s: list[float]
    x_plain: list[float]
    carried: float | None
    """Streams at `RATE` tokens a second each; None if beyond the loads that were measured."""
    carried_x_plain: float | None


def _figures(loads: Sequence[int], rates: Floats, plain: Floats) -> Figures:
    """Medians over the turns; rates are [turns, loads]."""
    carried, carried_plain = (_carried(loads, np.median(measured, axis=0)) for measured in (rates, plain))
    return Figures(
        tokens_per_busy_s=np.median(rates, axis=0).tolist(),
        x_plain=np.median(rates / plain, axis=0).tolist(),
        carried=carried,
        carried_x_plain=carried / carried_plain if carried and carried_plain else None,
    )


def _carried(loads: Sequence[int], rates: Floats) -> float | None:
    """The load at which a stream's share of a busy second is `RATE` tokens, interpolated."""
    shares = rates / np.array(loads)
    if shares[-1] > RATE or shares[0] < RATE:
        return None
    return float(np.interp(-RATE, -shares, loads))


def _report(loads: Sequence[int], policies: dict[str, Figures]) -> None:
    print(
        f"{DEFAULT_TARGET} with {DEFAULT_DRAFT}, T = 0: tokens per second of busy time by streams, and x plain decoding"
    )
    print(f"{'policy':<20}" + "".join(f"{load:>12}" for load in loads) + f"{'streams at 10 tok/s':>22}{'x plain':>9}")
    for name, figures in policies.items():
        rates = zip(figures["tokens_per_busy_s"], figures["x_plain"], strict=True)
        carried, ratio = figures["carried"], figures["carried_x_plain"]
        print(
            f"{name:<20}"
            + "".join(f"{rate:>6.0f} {x_plain:>5.2f}" for rate, x_plain in rates)
            + (f"{carried:>22.0f}" if carried else f"{'beyond these loads':>22}")
            + (f"{ratio:>9.2f}" if ratio else f"{'-':>9}")
        )


if __name__ == "__main__":
    typer.run(main)
