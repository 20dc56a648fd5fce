"""How well one process keeps a caption server busy, what a request costs it, and whether its memory stays flat.

python -m tests.benchmarks.captions [REQUESTS]      20000 by default

The server answers after 200 ms, 64 requests at a time, in a process of its own: 320 answers a second at best.
"""

import asyncio
import subprocess
import sys
import time

import psutil

from captioning.client import Client
from captioning.config import CaptionConfig
from captioning.showing import Clip

LATENCY_S, SLOTS, PORT = 0.2, 64, 18231
CLIP_KB = 30
PARTS = 10


async def measure(requests: int) -> None:
    """Print a line for each tenth of the requests, and the whole."""
    models = [{"name": "m", "urls": [f"http://127.0.0.1:{PORT}/v1"]}]
    client = Client(CaptionConfig.model_validate({"models": models}))
    data = b"v" * (CLIP_KB * 1024)
    clips = [Clip(f"clip{n:06d}", "video", lambda: data) for n in range(requests)]
    process, capacity = psutil.Process(), SLOTS / LATENCY_S
    began = at = time.perf_counter()
    cpu_began = cpu_at = time.process_time()
    done = good = 0
    async for row in client.rows(clips):
        done, good = done + 1, good + (row["status"] == "ok")
        if done % (requests // PARTS) == 0:
            now, cpu = time.perf_counter(), time.process_time()
            rate = requests // PARTS / (now - at)
            print(
                f"{done:6d} requests: {rate:5.0f}/s, {rate / capacity:.1%} of the server's capacity, "
                f"{(cpu - cpu_at) / (requests // PARTS) * 1000:.2f} CPU-s a thousand, "
                f"{process.memory_info().rss / 2**20:.0f} MiB, limit {client.lines['m'].servers[0].limit.now:.0f}",
                flush=True,
            )
            at, cpu_at = now, cpu
    rate = requests / (time.perf_counter() - began)
    cpu_s = (time.process_time() - cpu_began) / requests * 1000
    print(f"whole: {rate:.0f}/s, {rate / capacity:.1%} of capacity, {cpu_s:.2f} CPU-s a thousand requests, {good} captions")
    await client.close()


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    command = [sys.executable, "-m", "tests.captioning.server", str(PORT), str(LATENCY_S), str(SLOTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline()
        try:
            asyncio.run(measure(count))
        finally:
            server.terminate()
