"""Ten thousand streams: how long the simulator takes for a minute of them.

The engine is about what eight H100s make of the paper's smaller target, a dense 14B model in bf16: 20 ms for what is
done once a pass, 10 microseconds a row (a thousand cached tokens of 160 KiB each, read at 60% of 27 TB/s), and 18
microseconds a token (28 GFLOP at a fifth of 8 PFLOP/s). Agents are those of the instances. What the simulator takes is
proportional to streams and passes, so that an engine of half the pass takes it twice as long.
"""

from __future__ import annotations

import time

from bench.simulated.worlds import edges
from goodspeed.scheduling import SecondsSched
from goodspeed.simulation import Engine, simulate

__all__ = ["measure"]

ENGINE = Engine(fixed_s=0.020, row_s=10e-6, token_s=18e-6)


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
