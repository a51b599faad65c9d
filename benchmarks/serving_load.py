"""Load on the HTTP server: throughput and latency at several numbers of clients, nothing lost or mixed up.

    python benchmarks/serving_load.py --requests 48

Starts `stepvar serve` on a free port of this machine and sends it a bounded number of requests.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

PROMPT = "a red circle on grass"
CLIENTS = (1, 4, 16)


def start_server(options: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "stepvar.cli", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, env=dict(os.environ))
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/health")
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return process, address
    raise SystemExit("the server did not become ready within two minutes")


def draw(address: str, seed: int, quality: str) -> tuple[float, bytes]:
    """Seconds and picture of one request."""
    body = {"prompt": PROMPT, "seed": seed, "quality": quality}
    started = time.perf_counter()
    answer = httpx.post(f"{address}/v1/images/generations", json=body, timeout=600)
    answer.raise_for_status()
    return time.perf_counter() - started, base64.b64decode(answer.json()["data"][0]["b64_json"])


def measure(address: str, clients: int, requests: int, quality: str, alone: dict[int, bytes]) -> str:
    """A row of the table: pictures a second, latency, and pictures that differ from those drawn alone."""
    seeds = [index % len(alone) for index in range(requests)]
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda seed: draw(address, seed, quality), seeds))
    elapsed = time.perf_counter() - started
    seconds = sorted(duration for duration, _ in answers)
    different = sum(picture != alone[seed] for seed, (_, picture) in zip(seeds, answers, strict=True))
    late = seconds[min(int(0.95 * len(seconds)), len(seconds) - 1)]
    median = statistics.median(seconds)
    return f"| {clients} | {requests / elapsed:.2f} | {median:.2f} | {late:.2f} | {different} of {requests} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=48, help="for each number of clients")
    parser.add_argument("--quality", default="fast", help="lossless, high or fast")
    parser.add_argument("options", nargs="*", help="of stepvar serve, after --")
    arguments = parser.parse_args()
    process, address = start_server(arguments.options)
    try:
        draw(address, 0, arguments.quality)
        alone = {seed: draw(address, seed, arguments.quality)[1] for seed in range(8)}
        print("| clients | pictures a second | p50, s | p95, s | not as alone |\n|---|---|---|---|---|")
        for clients in CLIENTS:
            print(measure(address, clients, arguments.requests, arguments.quality, alone), flush=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
