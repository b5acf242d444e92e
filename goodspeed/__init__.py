"""GoodSpeed: distributed speculative decoding with fair goodput.

The shared core: pure logic driven by events and an explicit `now`. It opens no socket, runs no event loop and
reads no clock; the server, the agents, the simulator and the tests all drive these same objects.
"""

__version__ = "0.1.0"
