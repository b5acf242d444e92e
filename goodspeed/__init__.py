"""GoodSpeed: distributed speculative decoding with fair goodput.

The shared core: pure logic driven by events and an explicit `now`. It opens no socket, runs no event loop and
reads no clock; the server, the agents, the simulator and the tests all drive these same objects.
"""

import logging

__version__ = "0.1.0"

# Where torchao is installed transformers imports it, quantised weights or not, and it says at every start which kernels
# of other devices it has not loaded. To be heard of nowhere it has to be told before anybody imports it.
for _logger in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_logger).setLevel(logging.ERROR)
