"""Links without TLS, to a server that has none."""

from __future__ import annotations

import logging

from websockets.asyncio.server import ServerConnection

__all__ = ["ClearConnection"]

logger = logging.getLogger(__name__)

_TLS_HANDSHAKE = b"\x16"
"""What TLS begins with, and no HTTP request does."""


class ClearConnection(ServerConnection):
    """Hangs up on who begins with TLS.

    A request that is none would be waited for until the handshake's time is over, and its sender told nothing so long.
    """

    _begun = False

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        if not self._begun and data.startswith(_TLS_HANDSHAKE):
            logger.info("somebody asks for TLS (wss://), which this server speaks only with --tls-cert")
            self.transport.abort()
            return
        self._begun = True
        super().data_received(data)
