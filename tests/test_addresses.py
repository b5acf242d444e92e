import pytest

from goodspeed.addresses import check_url, is_loopback, proxy_for, url_of
from goodspeed.errors import InvalidRequest


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("ws://127.0.0.1:8765", True),
        ("ws://127.1.2.3", True),
        ("ws://[::1]:8765/", True),
        ("wss://localhost", True),
        ("ws://LOCALHOST:1", True),
        ("ws://10.0.0.1:8765", False),
        ("ws://localhost.example.com", False),
        ("ws://[2001:db8::1]:1", False),
        ("ws://", False),
    ],
)
def test_this_machine_is_told_from_others(url: str, loopback: bool) -> None:
    assert is_loopback(url) == loopback


@pytest.mark.parametrize("url", ["ws://a..b:1", f"ws://{'a' * 64}.example", "http://a", "ws://a:99999", "ws://"])
def test_what_no_resolver_would_be_asked_for_is_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="is no server address: write ws://HOST:PORT"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["ws://a.b.:1", "ws://[::1]:8765", "ws://my_box", "wss://bücher.example", "ws://1.2.3.4"]
)
def test_what_a_resolver_may_know_is_one(url: str) -> None:
    check_url(url)


def test_the_environment_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "near.example")
    assert proxy_for("ws://far.example:8765") == "http://proxy.example:3128"
    assert proxy_for("ws://near.example:8765") is None
    assert proxy_for("ws://127.0.0.1:8765") is None


@pytest.mark.parametrize(
    ("proxy", "sentence"),
    [
        ("gopher://proxy.example", "gopher"),
        ("http://", "hostname"),
        ("http://proxy.example:99999", "Port out of range"),
        ("socks5h://proxy.example:1080", "pip install python-socks"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str, sentence: str) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(InvalidRequest, match=f"(?s)far.example.*{sentence}"):
        proxy_for("wss://far.example:8765")


def test_an_address_is_said_as_agents_write_it() -> None:
    assert url_of("127.0.0.1", 8765, secure=False) == "ws://127.0.0.1:8765"
    assert url_of("::1", 1, secure=True) == "wss://[::1]:1"
