"""What `goodspeed-server` and `goodspeed-agent` read in the environment, which is one where both run."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Literal

from goodspeed.errors import InvalidRequest

__all__ = ["ENVIRONMENT", "OF_AGENTS", "OF_BOTH", "OF_SERVERS", "check_environment"]

ENVIRONMENT = "GOODSPEED"
"""What every name begins with: `--max-streams` is `GOODSPEED_MAX_STREAMS`."""

OF_AGENTS = frozenset({"GOODSPEED_DRAFT", "GOODSPEED_NAME", "GOODSPEED_OFFLINE_FALLBACK", "GOODSPEED_SERVER"})
OF_BOTH = frozenset(
    {
        "GOODSPEED_CA", "GOODSPEED_CACHE", "GOODSPEED_LOG_JSON", "GOODSPEED_RULE", "GOODSPEED_TOKEN",
        "GOODSPEED_VERBOSE",
    }
)  # fmt: skip
OF_SERVERS = frozenset(
    f"{ENVIRONMENT}_{name}"
    for name in (
        "CAPACITY", "CONFIG", "DEVICE", "DRAIN_S", "DTYPE", "EARLY_STOP", "FAILED_TOKENS_PER_MINUTE", "FAIRNESS",
        "HANDSHAKES_PER_MINUTE", "HOST", "IDLE_S", "INSECURE", "LAYOUT", "LOG_FILE", "MAX_LENGTH", "MAX_LINKS",
        "MAX_LINKS_PER_ADDRESS", "MAX_STREAMS", "MAX_STREAMS_PER_AGENT", "MAX_WAITING", "MAX_WAITING_TOKENS",
        "MESSAGES_PER_S", "MODEL", "MONITOR", "PARK_S", "PORT", "PREFILL_CHUNK", "PREFIX_SHARING", "QUANTIZE",
        "RECORD", "RECORD_MAX_MB", "ROUNDS", "ROUND_TIMEOUT_MS", "SCHEDULER", "TENSOR_PARALLEL", "THREADS", "TLS_CERT",
        "TLS_CLIENT_CA", "TLS_KEY", "TOKENS", "TRACE", "TRACE_MAX_MB",
    )
)  # fmt: skip
_OF_KUBERNETES = re.compile(
    r"\w+_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*|\w+_PORT=\w+://.*"
)
"""What it puts into every container about a service whose name begins with ours."""


def check_environment(
    program: Literal["goodspeed-server", "goodspeed-agent"], environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse a variable with our prefix that nothing reads: its value would not be in force, and nobody would know.

    Args:
        program: who asks; what the other one alone reads is no mistake.
        environment: names and values.

    Raises:
        InvalidRequest: naming it, and the nearest that exists.
    """
    own, other, belongs = OF_SERVERS, OF_AGENTS, ", which is goodspeed-agent's"
    if program == "goodspeed-agent":
        own, other, belongs = OF_AGENTS, OF_SERVERS, ", which is goodspeed-server's"
    known = own | other | OF_BOTH
    for name, value in sorted(environment.items()):
        if not name.startswith(f"{ENVIRONMENT}_") or name in known or _OF_KUBERNETES.fullmatch(f"{name}={value}"):
            continue
        # Without what all of them begin with, which would make any two alike.
        endings = {each.removeprefix(ENVIRONMENT): each for each in sorted(known)}
        near = [endings[end] for end in difflib.get_close_matches(name.removeprefix(ENVIRONMENT).upper(), endings, 1)]
        if near:
            hint = f"did you mean {near[0]}{belongs if near[0] in other else ''}?"
        else:
            hint = f"there are {', '.join(sorted(own | OF_BOTH))}"
        raise InvalidRequest(f"{name} is in the environment, and nothing reads it: {hint}")
