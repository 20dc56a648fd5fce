"""A package `vllm` for tests of what starts servers: the command line, the routes and the manners of the real one.

A model whose path contains "broken" ends at once with a message.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

SERVER = """
import argparse, os, sys, time
from aiohttp import web
from tests.captioning.server import CaptionServer
parser = argparse.ArgumentParser()
for name in ("model", "served-model-name", "host", "limit-mm-per-prompt", "max-model-len", "allowed-local-media-path"):
    parser.add_argument("--" + name)
for name in ("port", "tensor-parallel-size"):
    parser.add_argument("--" + name, type=int)
args = parser.parse_args()
print("loading", args.model, flush=True)
if "broken" in args.model:
    sys.exit("OSError: no file named config.json found in directory " + args.model)
time.sleep(0.5)
serving = CaptionServer(args.served_model_name, key=os.environ.get("VLLM_API_KEY"))
app = web.Application(client_max_size=2**28)
app.router.add_get("/health", lambda request: _well())
app.router.add_get("/v1/models", serving._list)
app.router.add_post("/v1/chat/completions", serving._chat)
async def _well():
    return web.Response()
web.run_app(app, host=args.host, port=args.port, print=None)
"""


def make(folder: Path) -> dict[str, str]:
    """Write the package into a folder; the environment with which an interpreter finds it."""
    place = folder / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True, exist_ok=True)
    for package in (folder / "vllm", folder / "vllm" / "entrypoints", place):
        (package / "__init__.py").touch()
    (place / "api_server.py").write_text(SERVER)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


PYTHON = sys.executable
