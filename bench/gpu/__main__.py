"""The command: measures case after case, keeps what it has, and ends in time."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.gpu.cases import CASES, Case
from bench.gpu.hardware import Hardware
from bench.gpu.report import Report, Result
from bench.gpu.rounds import Bench, segments_of
from bench.gpu.targets import SHAPES, Weights, build
from goodspeed.engine import Engine
from goodspeed_server.free_memory import free_bytes

__all__ = ["measure_all"]

LIMIT_S = 450.0
OVERTIME_S = 45.0
"""What the case may take that is at work when time is up, until the process ends without it."""
CASE_S = 20.0
"""With less time left no case is begun."""
WORKING_BYTES = {"cuda": 5 * 2**30, "cpu": 2**28}
"""Activations, logits and the memory of graphs, beside weights and cache."""


def main(
    device: Annotated[str, typer.Option(help="Where to run: cuda, or cpu to try the command.")] = "cuda",
    shape: Annotated[list[str] | None, typer.Option(help=f"Targets: {', '.join(SHAPES)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each kind.")] = 40,
    limit_s: Annotated[float, typer.Option(help="When to stop beginning new cases, seconds.")] = LIMIT_S,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there, case by case.")] = None,
) -> None:
    """Measure rounds of verification against the least that the hardware would need."""
    chosen = shape or ["qwen3-14b", "llama-3.1-8b"]
    if unknown := sorted(set(chosen) - set(SHAPES)):
        raise typer.BadParameter(f"no shape {', '.join(unknown)}: choose of {', '.join(SHAPES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU here: try the command with --device cpu --shape tiny")
    overtime = threading.Timer(limit_s + OVERTIME_S, _give_up)
    overtime.daemon = True
    overtime.start()
    console = Console(width=200)
    try:
        report = measure_all(torch.device(device), chosen, rounds, time.monotonic() + limit_s, json_file, console)
    finally:
        overtime.cancel()
    report.show(console)


def measure_all(
    device: torch.device, shapes: list[str], rounds: int, until_s: float, json_file: Path | None, console: Console
) -> Report:
    """Measure the cases of some shapes, until time is up.

    Args:
        device: where to run.
        shapes: names, the most important first.
        rounds: of each kind.
        until_s: when to stop beginning cases, by the monotonic clock.
        json_file: where what was measured is kept from case to case.
        console: is told of each case.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    report = Report(device, Hardware.measure(device, dtype, free_bytes(device)), json_file)
    for shape in shapes:
        _release(device)
        needed = Weights.bytes_of(SHAPES[shape](), dtype) + WORKING_BYTES[device.type]
        if reason := _no_room(needed, device) or _no_time(until_s):
            report.skipped.append(f"{shape}: {reason}")
        else:
            _measure_shape(report, shape, dtype, rounds, until_s, console)
        report.write()
    return report


def _measure_shape(
    report: Report, shape: str, dtype: torch.dtype, rounds: int, until_s: float, console: Console
) -> None:
    device = report.device
    model = build(SHAPES[shape](), device, dtype)
    weights = Weights.of(model)
    engine = Engine(model, rows=1, max_length=64, layout="padded", device=device, dtype=dtype)
    token_bytes = engine.kv_bytes_per_token
    for case in CASES[shape]:
        engine.begin_anew(1, 64)
        _release(device)
        needed = case.rows * case.max_length * token_bytes + WORKING_BYTES[device.type]
        if reason := _no_room(needed, device) or _no_time(until_s):
            report.skipped.append(f"{shape}, {case.name}: {reason}")
        else:
            console.print(f"{shape}, {case.name} ...")
            try:
                result = _measure_case(report.hardware, shape, engine, weights, case, rounds, until_s)
            except torch.OutOfMemoryError as error:
                report.skipped.append(f"{shape}, {case.name}: {str(error).splitlines()[0]}")
            else:
                report.results.append(result)
                console.print(
                    f"    {result.round_ms:.2f} ms ({result.fastest}), {result.ratio:.2f} floors of "
                    f"{result.floor_ms:.2f} ms; plain decoding {result.decoding_ms:.2f} ms"
                )
        report.write()
    if engine.graphs is not None:
        report.choices += [{"shape": shape} | asdict(choice) for choice in engine.graphs.choices]


def _measure_case(
    hardware: Hardware, shape: str, engine: Engine, weights: Weights, case: Case, rounds: int, until_s: float
) -> Result:
    left_s = until_s - time.monotonic()
    bench = Bench(engine, case)
    filled = bench.fill(min(30.0, left_s / 4))
    work, plain = bench.verification(), bench.decoding()
    limit_s = min(5.0, left_s / 20)
    timings = {way: bench.time(work, way, rounds, limit_s) for way in bench.ways()}
    decoding = {way: bench.time(plain, way, rounds, limit_s) for way in bench.ways()}
    fastest = min(timings, key=lambda way: timings[way].median_ms)
    segments = segments_of(work)
    bytes_s, operations_s = hardware.floor_s(weights, segments, engine.kv_bytes_per_token)
    return Result(
        shape=shape,
        case=case,
        tokens=work.tokens,
        filled=filled,
        bytes_floor_ms=1e3 * bytes_s,
        operations_floor_ms=1e3 * operations_s,
        rounds=timings,
        decoding=decoding,
        split_ms=bench.split(work, fastest, min(rounds, 10)),
    )


def _no_room(needed: int, device: torch.device) -> str | None:
    free = free_bytes(device)
    return None if needed <= free else f"needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"


def _no_time(until_s: float) -> str | None:
    return None if time.monotonic() + CASE_S < until_s else "no time was left"


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _give_up() -> None:
    typer.echo("time is up, in the middle of a case; what was measured before it is in the JSON", err=True)
    os._exit(1)


if __name__ == "__main__":
    typer.run(main)
