import pytest

from goodspeed.addresses import is_loopback


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
