"""`python -m goodspeed_server` is `goodspeed-server`."""

from goodspeed_server.cli import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
