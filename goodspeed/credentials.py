"""What a peer shows to be let in, and how it makes sure of whom it talks to."""

from __future__ import annotations

import http
import logging
import ssl
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from websockets.exceptions import InvalidHandshake, InvalidMessage
from websockets.http11 import Response

from goodspeed.addresses import is_loopback
from goodspeed.errors import InvalidRequest, LinkLost, Refused
from goodspeed.paths import expanded

__all__ = [
    "NOBODY",
    "ROLE_HEADER",
    "Credentials",
    "hint_of_handshake",
    "refused_by_status",
    "server_tls",
    "untrusted",
]

_log = logging.getLogger(__name__)

ROLE_HEADER = "GoodSpeed-Role"
"""What who only looks or steers says at the door, since a server that goes away lets in nobody else; its `Hello` has to
say the same."""

_LONGEST_REST_S = 86_400
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
"""What OpenSSL calls an answer that is none of TLS, or its absence."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of an agent or a monitor.

    Raises:
        InvalidRequest: a key is given without its certificate, or the other way round, or a path begins with the home
            of nobody.
    """

    token: str | None = field(default=None, repr=False)
    """The secret that `goodspeed-server token create` printed."""
    ca: Path | None = None
    """Certificates to trust instead of the system's: the server's own, where that signed itself."""
    certificate: Path | None = None
    """For a server that asks for one; `key` belongs to it."""
    key: Path | None = None

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            path = getattr(self, name)
            object.__setattr__(self, name, path and expanded(path))
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("a client's certificate and its key go together: give both, or neither")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise InvalidRequest("the token is none: it is what goodspeed-server token create printed, gst_ and so on")

    def headers(self, url: str) -> dict[str, str]:
        """For the handshake with a server."""
        if self.token is None:
            return {}
        if not _encrypted(url) and not is_loopback(url):
            _log.warning("the token goes to %s in the clear: use wss:// where others can listen", url)
        return {"Authorization": f"Bearer {self.token.strip()}"}

    def tls(self, url: str) -> ssl.SSLContext | None:
        """For a link to a server; None where the address does not ask for it.

        Raises:
            InvalidRequest: a file cannot be used.
        """
        if not _encrypted(url):
            return None
        context = _trusting(self.ca, ssl.Purpose.SERVER_AUTH)
        if self.certificate is not None:
            _load_chain(context, self.certificate, self.key)
        return context


NOBODY = Credentials()
"""Where nothing has to be shown."""


def _encrypted(url: str) -> bool:
    return urlsplit(url).scheme == "wss"  # in lower case, however it is written


def hint_of_handshake(url: str, credentials: Credentials, error: Exception) -> str:
    """What may be wrong where a handshake fails; empty if nobody knows."""
    silent = isinstance(error, TimeoutError | ConnectionResetError | BrokenPipeError)
    if not _encrypted(url):
        return "; it may want wss://" if isinstance(error, InvalidMessage | ConnectionResetError) else ""
    if silent or (isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS):
        return "; it may speak ws:// (no TLS)"
    if not isinstance(error, InvalidHandshake):
        return ""
    if credentials.certificate is None:
        return "; it may want a client's certificate: --client-cert and --client-key"
    return "; it may not take this client's certificate"


def refused_by_status(url: str, response: Response) -> Refused | LinkLost:
    """What an HTTP answer to a handshake means: who wants a token says so with 401, who has no room with 429 or 503."""
    status = response.status_code
    if status == http.HTTPStatus.UNAUTHORIZED:
        said = bytes(response.body or b"").decode(errors="replace").strip()
        return Refused(
            f"{url}: {said or 'a token is wanted'}; give it as GOODSPEED_TOKEN or --token", code="unauthorized"
        )
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or status == http.HTTPStatus.TOO_MANY_REQUESTS:
        return LinkLost(
            f"{url} answers with HTTP {status}: {bytes(response.body or b'').decode(errors='replace').strip()}",
            retry_after_s=_retry_after_s(response),
        )
    return Refused(f"{url} answers with HTTP {status}: that is not a goodspeed-server", code="not_a_server")


def _retry_after_s(response: Response) -> float:
    """What `Retry-After` says (RFC 9110, 10.2.3), of at most a day; 0 without it, and for what cannot be read."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        return float(min(int(said[:9]), _LONGEST_REST_S))
    try:
        # By the server's own clock, which need not be ours.
        rest = parsedate_to_datetime(said) - parsedate_to_datetime(response.headers.get("Date", ""))
    except (TypeError, ValueError):
        return 0.0
    return min(max(rest.total_seconds(), 0.0), _LONGEST_REST_S)


def untrusted(url: str, error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with a server's certificate, and what to do."""
    return (
        f"the certificate of {url} is not to be trusted ({error.verify_message}): if it signed itself, give its "
        "certificate as --ca; else the address may be another's"
    )


def server_tls(certificate: Path, key: Path | None, client_ca: Path | None) -> ssl.SSLContext:
    """For a server.

    Args:
        certificate: its own, with the chain behind it; the key may stand in the same file.
        key: of the certificate.
        client_ca: whose signature clients' certificates have to bear; None asks for none.

    Raises:
        InvalidRequest: a file cannot be used.
    """
    context = _trusting(client_ca, ssl.Purpose.CLIENT_AUTH)
    # TLS 1.2 lets a client ask for handshake after handshake on one link, each of them dearer for us than for it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    _load_chain(context, certificate, key)
    return context


def _trusting(ca: Path | None, purpose: ssl.Purpose) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"{ca} cannot be used as a file of certificates to trust: {error}") from None
    # Some builds of Python leave that to a file of the system's.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # Never ask on the terminal for a password: a server has none.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        beside = "" if key is None else f" with the key {key}"
        wanted = "; it takes PEM, and the certificate's own key, without a password" * isinstance(error, ssl.SSLError)
        raise InvalidRequest(f"the certificate {certificate}{beside} cannot be used: {error}{wanted}") from None
