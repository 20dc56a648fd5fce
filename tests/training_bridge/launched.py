"""Ranks as processes of their own, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(world: int, module: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """`python -m module arguments` on each of `world` ranks, one thread each, over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = []
    for rank in range(world):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        places |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", "-m", module, *arguments]
        found.append(
            subprocess.Popen(
                command, env={**os.environ, **places}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return found


def ended(started: list[subprocess.Popen[str]], timeout_s: float = 90) -> list[tuple[int, str]]:
    """(exit code, what it printed) of each."""
    try:
        said = [process.communicate(timeout=timeout_s)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def launched(world: int, module: str, *arguments: str) -> list[str]:
    """What each rank printed; all must end with 0."""
    done = ended(start(world, module, *arguments))
    assert [code for code, _ in done] == [0] * world, "\n".join(text for _, text in done)
    return [text for _, text in done]
