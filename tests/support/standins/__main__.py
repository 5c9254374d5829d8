"""``python -m support.standins cohere --latency 0.05`` prints URL and key, and serves until its input ends."""

from __future__ import annotations

import argparse
import sys

from support.standins.providers import PROVIDERS
from support.standins.server import StandIn


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="support.standins", description="A stand-in for a rerank service.")
    parser.add_argument("provider", choices=PROVIDERS)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that every reply takes")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with StandIn(arguments.provider, latency=arguments.latency, port=arguments.port) as server:
        sys.stdout.write(f"{server.url} {server.key}\n")
        sys.stdout.flush()
        sys.stdin.read()


main()
