"""Who is let in: by token, where the operator handed some out; by anybody else's word, where not."""

from __future__ import annotations

import http
import logging
from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from goodspeed.errors import CorruptData
from goodspeed_server.allowance import Allowance
from goodspeed_server.listener import later
from goodspeed_server.pacing import PeerPace
from goodspeed_server.settings import DoorSettings
from goodspeed_server.tokens import Role, Token, TokenStore

__all__ = ["Doorkeeper"]

logger = logging.getLogger(__name__)

_TROUBLE_RETRY_S = 10.0
"""An operator mends a file by hand, and an agent that keeps to it comes back before its users have given up."""


class Doorkeeper:
    """Looks at the token that a link shows, and remembers whose link it is.

    Args:
        store: None lets everybody in.
        settings: the operator's choices.
    """

    def __init__(self, store: TokenStore | None, settings: DoorSettings) -> None:
        self._store = store
        self._settings = settings
        self._shown: WeakKeyDictionary[ServerConnection, Token] = WeakKeyDictionary()
        self._allowances: dict[str, Allowance] = {}
        """By digest: a token that is made anew under the name of a revoked one does not pay for what that one used."""
        self._paces: dict[str, PeerPace] = {}
        """Likewise."""
        self._failing = False

    def refusal(self, connection: ServerConnection, request: Request, roles: Collection[Role]) -> Response | None:
        """What who is not let in is answered; None for who is.

        Args:
            connection: new.
            request: its HTTP request.
            roles: whose tokens will do; a link's role is looked at again when it says what it is.
        """
        if self._store is None:
            return None
        shown = request.headers.get_all("Authorization")
        scheme, _, secret = (shown[0] if len(shown) == 1 else "").partition(" ")
        if scheme != "Bearer" or not secret:
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED,
                "this server wants a token: ask its operator for one (goodspeed-server token create)\n",
            )
        token, trouble = None, ""
        try:
            token = self._store.find(secret)
        except CorruptData as error:
            trouble = str(error)
        if trouble and not self._failing:  # once, and not for everybody who knocks
            logger.error("nobody can be let in: %s", trouble)
        self._failing = bool(trouble)
        if trouble:
            # An operator's trouble, and nobody gets in by it.
            return later(connection, 503, "the server cannot check tokens now", _TROUBLE_RETRY_S)
        if token is None:
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this token is not known here, or was revoked: ask for another\n"
            )
        if token.role not in roles:
            return connection.respond(http.HTTPStatus.FORBIDDEN, f"this takes a token of role {' or '.join(roles)}\n")
        self._shown[connection] = token
        return None

    def token_of(self, connection: ServerConnection) -> Token | None:
        """What a link showed; None where nobody has to show anything."""
        return self._shown.get(connection)

    def allowance(self, token: Token) -> Allowance:
        """What a token's holder has used and may use, over all its links."""
        allowance = self._allowances.setdefault(token.digest, Allowance(token.name))
        allowance.limit(token.max_streams, token.tokens_per_minute)
        return allowance

    def pace(self, token: Token) -> PeerPace:
        """How much a token's holder is listened to, on all its links together."""
        return self._paces.setdefault(token.digest, PeerPace(self._settings.messages_per_s))

    def no_longer_welcome(self, connections: Iterable[ServerConnection]) -> list[ServerConnection]:
        """Of these links, those whose token was revoked since; of such tokens nothing is remembered any more.

        While tokens cannot be read, all are as they were.
        """
        if self._store is None:
            return []
        try:
            known = {token.digest for token in self._store.tokens()}
        except CorruptData:
            return []
        for digest in (self._allowances.keys() | self._paces.keys()) - known:
            self._allowances.pop(digest, None)
            self._paces.pop(digest, None)
        shown = ((connection, self._shown.get(connection)) for connection in connections)
        return [connection for connection, token in shown if token is not None and token.digest not in known]
