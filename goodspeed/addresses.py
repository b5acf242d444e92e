"""What an address says of itself, and the way there."""

from __future__ import annotations

import importlib.util
import ipaddress
from urllib.parse import urlsplit

from websockets.exceptions import InvalidProxy, InvalidURI
from websockets.proxy import get_proxy, parse_proxy
from websockets.uri import parse_uri

from goodspeed.errors import InvalidRequest

__all__ = ["check_url", "is_loopback", "is_loopback_host", "proxy_for", "url_of"]


def check_url(url: str) -> None:
    """Refuse what cannot be a server's address.

    Raises:
        InvalidRequest: with the form it should have.
    """
    try:
        parse_uri(url).host.encode("idna")
    except (InvalidURI, ValueError):
        raise InvalidRequest(f"{url!r} is no server address: write ws://HOST:PORT or wss://HOST:PORT") from None


def is_loopback(url: str) -> bool:
    """Whether a URL names this very machine, which a proxy would take for its own.

    Raises:
        ValueError: it is no URL.
    """
    return is_loopback_host(urlsplit(url).hostname or "")


def is_loopback_host(host: str) -> bool:
    """Whether a host is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a WebSocket URL; None if there is none, or the URL is this machine's.

    Raises:
        InvalidRequest: the environment names one that cannot be used.
        ValueError: it is no URL.
        InvalidURI: nor a WebSocket one.
    """
    uri = parse_uri(url)
    proxy = None if is_loopback(url) else get_proxy(uri)
    if proxy is None:
        return None
    unset = "set http_proxy, https_proxy or no_proxy in the environment to what it should be"
    try:
        scheme = parse_proxy(proxy).scheme
    except (InvalidProxy, ValueError) as error:
        raise InvalidRequest(f"the proxy for {url} cannot be used ({error}): {unset}") from None
    if scheme.startswith("socks") and importlib.util.find_spec("python_socks") is None:
        raise InvalidRequest(f"the proxy for {url} is {proxy}: for that pip install python-socks, or {unset}")
    return proxy


def url_of(host: str, port: int, *, secure: bool) -> str:
    """What an agent is told to link up to; an IPv6 address stands in brackets."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'wss' if secure else 'ws'}://{shown}:{port}"
