"""What an HTTP answer to a handshake means."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.datastructures import Headers
from websockets.http11 import Response

from goodspeed.credentials import NOBODY, refused_by_status, server_tls
from goodspeed.errors import LinkLost, Refused

NOON = "Fri, 27 Nov 2026 12:00:00 GMT"


def answer(status: int, **headers: str) -> Response:
    told = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return Response(status, "", told, b"because")


@pytest.mark.parametrize(
    ("headers", "retry_after_s"),
    [
        ({}, 0.0),
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": " 0 "}, 0.0),
        ({"Retry_After": "9" * 400}, 86_400.0),
        ({"Retry_After": "-3"}, 0.0),
        ({"Retry_After": "1.5"}, 0.0),
        ({"Retry_After": "\N{SUPERSCRIPT TWO}"}, 0.0),
        ({"Retry_After": "soon", "Date": NOON}, 0.0),
        ({"Retry_After": "Fri, 27 Nov 2026 12:00:30 GMT", "Date": NOON}, 30.0),
        ({"Retry_After": "Fri, 27 Nov 2026 11:00:00 GMT", "Date": NOON}, 0.0),
        ({"Retry_After": "Fri, 27 Nov 2026 12:00:30 GMT"}, 0.0),
        ({"Retry_After": "Fri, 27 Nov 2026 12:00:30", "Date": NOON}, 0.0),
        ({"Retry_After": "Sat, 27 Nov 2027 12:00:30 GMT", "Date": NOON}, 86_400.0),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_who_has_no_room_may_say_until_when(status: int, headers: dict[str, str], retry_after_s: float) -> None:
    error = refused_by_status("ws://a:1", answer(status, **headers))
    assert isinstance(error, LinkLost)
    assert error.retry_after_s == retry_after_s
    assert str(error) == f"ws://a:1 answers with HTTP {status}: because"


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (404, "not_a_server"), (400, "not_a_server")])
def test_whoever_refuses_for_good_is_not_asked_again(status: int, code: str) -> None:
    error = refused_by_status("ws://a:1", answer(status, Retry_After="7"))
    assert isinstance(error, Refused)
    assert error.code == code


def test_nobody_shakes_hands_twice_on_one_link(tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    context = server_tls(certificate, None, None)
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_neither_side_speaks_an_old_tls_whatever_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, make = tmp_path / "cert.pem", ssl.create_default_context
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))

    def lax(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = make(*arguments, **options)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        return context

    monkeypatch.setattr(ssl, "create_default_context", lax)
    for context in (server_tls(certificate, None, None), NOBODY.tls("wss://127.0.0.1:1")):
        assert context is not None
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
