"""What a drafted token costs on the wire, and how long messages take to encode and decode.

Bytes include the WebSocket frame headers (RFC 6455, section 5.2; what an agent sends is masked), and are taken at
their largest: the highest token ids of a vocabulary of 151,936, a long text, a high stream number. A server that does
not wait (rolling rounds) is sent the `offset` of a piece, and spells out what it accepts.
`python -m bench.wire [--json FILE]`
"""

from __future__ import annotations

import itertools
import json
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from goodspeed.messages import Draft, Open, Verdict, decode_agent, decode_server, encode
from goodspeed.sampling import SamplingParams
from goodspeed.verification import RATIO_TOP_K, pack_q, quantise, unpack_q

__all__ = ["main"]

VOCAB = 151_936
BASE = 100_000
STREAM = 1_000
COMPUTED_US = 100_000
"""A tenth of a second of drafting, five bytes: most drafts are quicker, and take three."""
PRICE_PERCENT = 30
AIM_BYTES = {"coupled": 16, "ratio": 256}
app = typer.Typer(add_completion=False)


def _on_the_wire(payload: bytes, *, masked: bool) -> int:
    header = 2 if len(payload) < 126 else 4 if len(payload) < 2**16 else 10
    return len(payload) + header + 4 * masked


def _microseconds(call: Callable[[], object]) -> float:
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    return min(timer.repeat(5, number)) / number * 1e6


def _measure(rule: str, size: int, waits: bool) -> dict[str, str | float]:
    drafted = [VOCAB - 1 - j for j in range(size)]
    packed = b""
    if rule == "ratio":
        support = np.arange(VOCAB - 2 * RATIO_TOP_K, VOCAB)
        likely = np.linspace(0.5, 1.0, len(support), dtype=np.float32)
        packed = pack_q([quantise(support, likely)] * size)
        unpack_q(packed, drafted, VOCAB)
    if waits:
        draft = Draft(STREAM, BASE, drafted, COMPUTED_US, q=packed)
        verdict = Verdict(STREAM, BASE, size, [VOCAB - 1], size, size, PRICE_PERCENT)
    else:
        draft = Draft(STREAM, BASE, drafted, COMPUTED_US, offset=size, q=packed)
        verdict = Verdict(STREAM, BASE, 0, [*drafted, VOCAB - 1], size, size, PRICE_PERCENT, overtaken=size)
    up, down = encode(draft), encode(verdict)
    up_bytes, down_bytes = _on_the_wire(up, masked=True), _on_the_wire(down, masked=False)
    return {
        "rule": rule,
        "waits": waits,
        "draft_tokens": size,
        "up_bytes": up_bytes,
        "down_bytes": down_bytes,
        "bytes_per_token": (up_bytes + down_bytes) / size,
        "draft_encode_us": _microseconds(lambda: encode(draft)),
        "draft_decode_us": _microseconds(lambda: decode_agent(up)),
        "q_unpack_us": _microseconds(lambda: unpack_q(packed, drafted, VOCAB)) if packed else 0.0,
        "verdict_encode_us": _microseconds(lambda: encode(verdict)),
        "verdict_decode_us": _microseconds(lambda: decode_server(down)),
    }


def _prompt() -> dict[str, float]:
    size = 4096
    message = Open(STREAM, [VOCAB - 1] * size, size, SamplingParams(temperature=0.8, top_p=0.95, seed=7), 256, 8)
    frame = encode(message)
    return {
        "prompt_tokens": size,
        "bytes": _on_the_wire(frame, masked=True),
        "encode_us": _microseconds(lambda: encode(message)),
        "decode_us": _microseconds(lambda: decode_agent(frame)),
    }


@app.command()
def main(as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None) -> None:
    """Print bytes per drafted token, up and down, and microseconds per message."""
    print(f"vocabulary {VOCAB}, ratio rule with k = {RATIO_TOP_K}; times in microseconds")
    print(
        f"{'rule':>8} {'waits':>6} {'draft':>6} {'up B':>6} {'down B':>7} {'B/token':>8} {'aim':>4} "
        f"{'encode':>7} {'decode':>7} {'unpack q':>9} {'verdict':>8} {'read it':>8}"
    )
    figures = []
    for rule in AIM_BYTES:
        for waits, size in itertools.product((True, False), (8, 4)):
            figure = _measure(rule, size, waits)
            figures.append(figure)
            print(
                f"{rule:>8} {'yes' if waits else 'no':>6} {size:>6} {figure['up_bytes']:>6} {figure['down_bytes']:>7} "
                f"{figure['bytes_per_token']:>8.1f} {AIM_BYTES[rule]:>4} {figure['draft_encode_us']:>7.2f} "
                f"{figure['draft_decode_us']:>7.2f} {figure['q_unpack_us']:>9.2f} "
                f"{figure['verdict_encode_us']:>8.2f} {figure['verdict_decode_us']:>8.2f}"
            )
    prompt = _prompt()
    print(
        f"a prompt of {prompt['prompt_tokens']} tokens: {prompt['bytes']} bytes, "
        f"encoded in {prompt['encode_us']:.0f} and decoded in {prompt['decode_us']:.0f}"
    )
    if as_json:
        as_json.write_text(
            json.dumps({"vocabulary": VOCAB, "aim_bytes": AIM_BYTES, "drafts": figures, "prompt": prompt}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    app()
