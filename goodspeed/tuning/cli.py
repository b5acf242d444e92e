"""`goodspeed tune`: fine-tune a draft toward its target, or say which draft is worth it."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, bundled, parameters_of, resolve
from goodspeed.errors import GoodSpeedError, InvalidRequest, ModelError
from goodspeed.extras import how_to_install
from goodspeed.paths import expanded
from goodspeed.snapshot import ServerSnapshot
from goodspeed.tuning.planning import GAP_CLOSED, Candidate, measured_flops, plan
from goodspeed.tuning.state import clients_of, read_state

if TYPE_CHECKING:
    from goodspeed.tuning.run import Tuning

__all__ = ["tune"]


class Method(StrEnum):
    """How a draft's weights are tuned."""

    AUTO = "auto"
    FULL = "full"
    LORA = "lora"


class Optimizer(StrEnum):
    """What takes the steps."""

    MUON = "muon"
    ADAMW = "adamw"


def tune(
    out: Annotated[Path | None, typer.Option(help="Folder for the tuned draft: new, or empty.")] = None,
    draft: Annotated[str, typer.Option(help="Draft: bundled, a folder, or a Hugging Face name.")] = DEFAULT_DRAFT,
    target: Annotated[str, typer.Option(help="Target, likewise; of the same tokenizer.")] = DEFAULT_TARGET,
    data: Annotated[
        list[str] | None,
        typer.Option(help="PATH[=SHARE]: what a server recorded, or text: a file, a folder, .jsonl. May be repeated."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="PATH[=SHARE]: text whose beginnings the target goes on from. May be repeated."),
    ] = None,
    loss: Annotated[
        str, typer.Option(help="forward-kl, reverse-kl, jsd, tv, neg-log-alpha, lk, block, utility, cross-entropy.")
    ] = "forward-kl",
    state: Annotated[
        Path | None,
        typer.Option(help="What goodspeed-server top URL --once --json printed: clients' budgets, goodputs, weights."),
    ] = None,
    budget: Annotated[
        int, typer.Option(min=0, help="Drafted tokens a round, of clients of whom nothing is known.")
    ] = 4,
    fairness: Annotated[
        float | None, typer.Option(help="Of the utility.", show_default="the server's, or 1: proportional")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates, at most.")] = 1000,
    optimizer: Annotated[Optimizer, typer.Option(help="Of a full tuning.")] = Optimizer.MUON,
    learning_rate: Annotated[float | None, typer.Option(show_default="5e-3; of AdamW 1e-3, of adapters 2e-4")] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 16,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of an update.")] = 1,
    row_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a row.")] = 256,
    rows: Annotated[int, typer.Option(min=2, help="Rows of each source of text, at most.")] = 4096,
    held_out: Annotated[float, typer.Option(help="Share of the passages that is kept for evaluation.")] = 0.05,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Updates between evaluations, and checkpoints.")] = 100,
    patience: Annotated[int, typer.Option(min=1, help="Evaluations without a better goodput before it stops.")] = 5,
    method: Annotated[Method, typer.Option(help="auto: adapters from 50M parameters on.")] = Method.AUTO,
    lora_rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    bf16: Annotated[bool | None, typer.Option(help="Autocast to bfloat16.", show_default="on CUDA")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    ranking: Annotated[
        bool, typer.Option("--plan", help="Tune nothing: rank the drafts of --state by expected gain per hour.")
    ] = False,
    gap_closed: Annotated[
        float, typer.Option(help="--plan: the share of the way from its acceptance to 1 that a draft is to move.")
    ] = GAP_CLOSED,
    flops: Annotated[
        float | None, typer.Option(min=1.0, help="--plan: operations a second of training.", show_default="measured")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON rather than tables.")] = False,
) -> None:
    """Fine-tune a draft toward its target, and measure what that brings to each client."""
    try:
        _check_libraries(threads)
        out = out and expanded(out)
        known = None if state is None else read_state(expanded(state))
        if ranking:
            tokens = steps * accumulate * batch_rows * row_tokens
            _plan(known, gap_closed=gap_closed, train_tokens=tokens, flops=flops, device=device, as_json=as_json)
            return
        if out is None:
            raise InvalidRequest("where to? Give --out, a folder for the tuned draft")
        from goodspeed.tuning.run import Tuning
        from goodspeed.tuning.sources import DataSpec

        sources = [DataSpec.parse(text, "read") for text in data or []]
        sources += [DataSpec.parse(text, "write") for text in prompts or []]
        settings = Tuning(
            draft=draft,
            target=target,
            out=out,
            sources=sources,
            loss=loss,
            clients=[] if known is None else clients_of(known),
            budget=budget,
            fairness=fairness if fairness is not None else known.fairness if known is not None else 1.0,
            steps=steps,
            optimizer=optimizer.value,
            learning_rate=learning_rate,
            batch_rows=batch_rows,
            accumulate=accumulate,
            row_tokens=row_tokens,
            rows=rows,
            held_out=held_out,
            evaluate_every=evaluate_every,
            patience=patience,
            method=method.value,
            lora_rank=lora_rank,
            device=device,
            bf16=bf16,
            seed=seed,
            resume=resume,
            progress_bar=sys.stderr.isatty(),
        )
        _tune(settings, as_json=as_json)
    except GoodSpeedError as error:
        print(f"goodspeed: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, InvalidRequest) else 1) from None


def _check_libraries(threads: int | None) -> None:
    for library in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(library) is None:
            raise ModelError(f"tuning needs {library}, which is missing: {how_to_install('tune')}")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _tune(settings: Tuning, *, as_json: bool) -> None:
    from goodspeed.tuning.run import tune as run
    from goodspeed.tuning.trainer import quiet

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("goodspeed.tuning").setLevel(logging.INFO)
    quiet()
    run(settings)
    card = json.loads((settings.out / "card.json").read_bytes())
    if as_json:
        print(json.dumps(card, indent=2))
    else:
        Console().print(_results(card))
        print(f"{settings.out}: give it to goodspeed-agent as --draft")


def _results(card: dict[str, object]) -> Table:
    before, after = card["before"], card["after"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    table = Table(title=escape(str(card["description"])), box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("client", overflow="fold")
    for heading in ("T", "acceptance", "coupled", "tokens a round"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, by_temperature in after.items():
        for temperature, new in by_temperature.items():
            old = before[name][temperature]
            lengths = [f"{old['length'][s]:.2f} -> {new['length'][s]:.2f} at S = {s}" for s in new["length"]]
            table.add_row(
                escape(name) or "(all)",
                temperature,
                f"{old['acceptance']:.3f} -> {new['acceptance']:.3f}",
                f"{old['coupled']:.3f} -> {new['coupled']:.3f}",
                "\n".join(lengths),
            )
    return table


def _plan(
    state: ServerSnapshot | None,
    *,
    gap_closed: float,
    train_tokens: float,
    flops: float | None,
    device: str,
    as_json: bool,
) -> None:
    if state is None:
        raise InvalidRequest("--plan reads --state, which goodspeed-server top URL --once --json prints")
    rate = flops or measured_flops("cpu" if device == "auto" else device)
    parameters = {row.drafter: count for row in state.agents if (count := _parameters(row.drafter)) is not None}
    candidates, others = plan(state, parameters, train_tokens=train_tokens, flops=rate, gap_closed=gap_closed)
    if as_json:
        ranked = [asdict(candidate) | {"gain_per_hour": candidate.gain_per_hour} for candidate in candidates]
        print(json.dumps({"candidates": ranked, "not_models": others, "flops": rate, "train_tokens": train_tokens}))
        return
    Console().print(_ranking(candidates))
    print(f"alpha moves {gap_closed:.0%} of the way to 1; tokens a round: (1 - alpha^(S+1)) / (1 - alpha);")
    print(f"hours: 6 x parameters x {train_tokens:.3g} tokens / {rate:.3g} operations a second")
    if others:
        print(f"not models that can be tuned from here: {', '.join(others)}")


def _ranking(candidates: list[Candidate]) -> Table:
    title = "Drafts by expected gain in utility per hour of training"
    table = Table(title=title, box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("draft", overflow="fold")
    for heading in ("agents", "streams", "alpha", "S", "tokens a round", "gain", "hours", "gain per hour"):
        table.add_column(heading, justify="right", overflow="fold")
    for one in candidates:
        table.add_row(
            escape(one.drafter),
            str(one.agents),
            str(one.streams),
            f"{one.alpha:.3f} -> {one.alpha_after:.3f}",
            f"{one.budget:.1f}",
            f"{one.length:.2f} -> {one.length_after:.2f}",
            f"{one.gain:.3f}",
            f"{one.hours:.4f}",
            f"{one.gain_per_hour:.3g}",
        )
    return table


def _parameters(drafter: str) -> int | None:
    """How many a draft has, by its card or its weights; None if there is no such model here."""
    known = {model.name: model.parameters for model in bundled()}
    if drafter in known:
        return known[drafter]
    weights = list(Path(resolve(drafter)).glob("*.safetensors"))
    return sum(map(parameters_of, weights)) if weights else None
