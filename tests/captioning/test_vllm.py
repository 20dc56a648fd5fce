"""The whole path with real vLLM servers on CPU: from the demo corpus to captions in shards, a server killed on the way.

`make test-vllm` runs this: vLLM stands in an environment of its own, whose folder is in REELSET_VLLM.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from captioning.client import check, model_of
from captioning.config import CaptionConfig
from captioning.servers import addresses
from curation import storage
from jobs.demo_corpus import make_corpus
from tests.captioning.test_servers import Started, family, server_at

ROOT = Path(__file__).parent.parent.parent
VLLM = Path(os.environ.get("REELSET_VLLM", ROOT / ".vllm"))
PYTHON = VLLM / "bin" / "python"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM here: run `make test-vllm`"),
]


@dataclass
class Servers:
    """Two real servers, and the config that names them."""

    command: Started
    config: Path
    tree: CaptionConfig


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("vllm")
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    serve = {"python": str(PYTHON), "gpus": 0, "cpus": 0.25, "max_model_len": 4096, "limits": {"image": 16, "video": 1}}
    serve |= {"args": ["--enforce-eager", "--dtype", "float32"], "env": env}
    models: list[dict[str, Any]] = []
    for seed, (name, share) in enumerate({"tiny-small": 70, "tiny-large": 30}.items()):
        command = [str(PYTHON), str(Path(__file__).parent / "tiny_vlm.py"), str(folder / name), str(seed)]
        subprocess.run(command, check=True, env=os.environ | env)
        models.append({"name": name, "share": share, "path": str(folder / name), "serve": serve})
    tree = {"book": str(folder / "book.json"), "models": models, "wait_s": 600}
    config = folder / "captions.yaml"
    config.write_text(yaml.safe_dump({"caption": tree, "encode": {"preset": "ultrafast"}}))
    command_ = Started(config)
    try:
        command_.wait(lambda: "all 2 servers are well" in command_.said(), 600)
        yield Servers(command_, config, CaptionConfig.model_validate(tree))
        book = addresses(str(tree["book"]))
        processes = [process for (url,) in book.values() for process in family(server_at(url))]
        command_.process.send_signal(signal.SIGTERM)
        assert command_.process.wait(60) == 0
        assert len(processes) > 2 and not any(process.is_running() for process in processes), "no server is left"
    finally:
        command_.process.kill()
        command_.process.wait()


def captions(run: Path) -> dict[str, dict[str, Any]]:
    """All rows by clip; a clip with two rows fails."""
    if not (run / "captions").exists():
        return {}
    rows = storage.read_table(str(run / "captions")).to_pylist()
    assert len(rows) == len({row["clip_id"] for row in rows})
    return {row["clip_id"]: row for row in rows}


def test_a_killed_server_comes_back_and_every_clip_has_one_caption(servers: Servers, tmp_path: Path) -> None:
    os.environ["REELSET_CAPTION_KEY"] = "sk-very-secret"  # as `Started` gave it to the servers
    check(servers.tree)
    make_corpus(tmp_path / "corpus")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "jobs.cli", "run", "--input", str(tmp_path / "corpus"), "--output", str(run)]
    with (tmp_path / "said.txt").open("wb") as log:
        job = subprocess.Popen([*command, "--config", str(servers.config)], cwd=ROOT, stderr=log, stdout=log)
        before: dict[str, dict[str, Any]] = {}
        while job.poll() is None and not before:
            before = captions(run)
            time.sleep(0.2)
        assert before, (tmp_path / "said.txt").read_text()
        book = addresses(str(servers.tree.book))
        server_at(book["tiny-small"][0]).kill()
        assert job.wait(1200) == 0, (tmp_path / "said.txt").read_text()
    servers.command.wait(lambda: servers.command.said().count("tiny-small: well after") == 2)
    assert addresses(str(servers.tree.book)) == book, "it came back where it was"

    rows = captions(run)
    assert all(rows[clip_id] == row for clip_id, row in before.items()), "what was written stays as it was"
    selected = {r["clip_id"] for r in storage.read_table(str(run / "selection" / "everyday")).to_pylist() if r["shard"]}
    produced = {r["clip_id"]: r for r in storage.read_table(str(run / "produced" / "everyday")).to_pylist()}
    assert set(rows) == selected == set(produced) and len(rows) > 20
    assert {row["model"] for row in rows.values()} == {"tiny-small", "tiny-large"}
    assert all(row["model"] == model_of(clip_id, servers.tree.models).name for clip_id, row in rows.items())
    codes = Counter(row["error_code"] or "ok" for row in rows.values())
    bad = {"caption_empty", "caption_truncated", "caption_repeated", "caption_language"}
    assert set(codes) <= {"ok", *bad}, "random words may be no caption; no clip is charged for the server's death"
    assert codes["ok"] > 0.6 * len(rows)
    assert {c: r["error_code"] for c, r in produced.items()} == {c: r["error_code"] for c, r in rows.items()}
    for tar in (run / "shards").rglob("*.tar"):
        with tarfile.open(tar) as shard:
            members = {m.name: shard.extractfile(m).read() for m in shard}  # type: ignore[union-attr]
        for name in (n for n in members if n.endswith(".txt")):
            clip_id = name.removesuffix(".txt")
            story = json.loads(members[f"{clip_id}.json"])
            assert members[name].decode().endswith(rows[clip_id]["caption"]) and story["caption"]["model"]
    models = Counter(row["model"] for row in rows.values())
    print(f"{len(rows)} clips: {dict(codes)}; {dict(models)}; {len(before)} before the kill")
