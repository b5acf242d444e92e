"""Ten thousand streams: how long the simulator takes for a minute of them.

The engine is about what eight H100s make of a dense 8B model: 20 ms for what is done once a pass, 8 microseconds a row
(a thousand cached tokens of 128 KiB each, read at 60% of 27 TB/s), and 10 microseconds a token (16 GFLOP at a fifth of
the 8 PFLOP/s that bf16 allows). Agents are those of the instances.
"""

from __future__ import annotations

import time

from bench.simulated.worlds import edges
from goodspeed.scheduling import SecondsSched
from goodspeed.simulation import Engine, simulate

__all__ = ["measure"]

ENGINE = Engine(fixed_s=0.020, row_s=8e-6, token_s=10e-6)


def measure(streams: int, virtual_s: float) -> dict[str, float]:
    """Simulate, and look at the clock."""
    agents = edges(0, streams)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    run = simulate(agents, ENGINE, SecondsSched(), rounds="rolling", duration_s=virtual_s)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {
        "streams": streams,
        "virtual_s": virtual_s,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "passes": run.passes,
        "tokens_per_s": float(run.goodput.sum()),
        "geometric_mean": run.geometric_mean,
        "central_decoding": 1.0 / ENGINE.seconds(streams, streams),
    }
