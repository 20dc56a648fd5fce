"""How long the review server's pages take over many candidates.

    python -m tests.benchmarks.review_pages [COUNT]

The run's tables are made up; the server is the real one, asked in this process. Times are CPU time, the client's
included; the first of its kind apart, as that may make an index.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from curation import run_folder, storage
from curation.media import MediaLimits
from curation.review import ReviewConfig
from curation.tables import CLIP_SCORES, CLIPS, SOURCES
from jobs import selecting
from jobs.config import resolve

UNIT = 2000
PAGES = {
    "list, first page": "/list",
    "list by aesthetic": "/list?sort=-aesthetic",
    "list by path, all verdicts": "/list?sort=path&verdict=all",
    "list of a rule": "/list?rule=aesthetic+%3E%3D+5+and+motion_mv+%3C+4&sort=-motion_mv",
    "list of words": "/list?words=film+77",
    "concepts": "/concepts",
    "people": "/people",
}


def make(run: str, count: int) -> None:
    """A run with `count` candidates, in 200 concepts."""
    subset = {"name": "picked", "bucket_class": 256, "review": {"judgements": 1}}
    config = resolve({"subsets": [subset], "duplicates": {"enabled": False}})
    run_folder.write(run, {"input": "in", **config.model_dump(mode="json")}, config.decides())
    rng = np.random.default_rng(0)
    for first in range(0, count, UNIT):
        n, unit = min(UNIT, count - first), f"unit-{first // UNIT:06d}"
        common = {"kind": "video", "status": "ok", "duration_s": 12.0, "frames": 300, "fps": 25.0, "width": 640, "height": 360}
        common |= {"start_s": 0.0, "end_s": 12.0, "start_frame": 0, "end_frame": 300, "unit": unit, "camera": "pan_left"}
        rows = [common | {"source_id": f"{i:016x}", "path": f"film {i}.mp4"} for i in range(first, first + n)]
        scores = rng.uniform(0, 8, (n, len(CLIP_SCORES)))
        clips = [
            row | {"clip_id": f"{row['source_id']}_0000000_0000300"} | dict(zip(CLIP_SCORES, own, strict=True))
            for row, own in zip(rows, scores.tolist(), strict=True)
        ]
        captions = [f"A made-up caption of film {row['path']}, in which somebody does something for a while." for row in rows]
        borders = {f"border_{side}_px": 0.0 for side in ("top", "bottom", "left", "right")}
        tables = {
            "sources": _table(rows, SOURCES).append_column("caption", pa.array(captions)),
            "clips": _table([clip | borders for clip in clips], CLIPS),
            "concepts": pa.table(
                {
                    "clip_id": [clip["clip_id"] for clip in clips],
                    "cluster": rng.integers(0, 200, n),
                    "similarity": rng.uniform(0, 1, n).astype(np.float32),
                    "people_similarity": pa.nulls(n, pa.float32()),
                }
            ),
        }
        for name, table in tables.items():
            storage.write_table(f"{run}/{name}/{unit}.parquet", table)
    print(selecting.select(run, config, config.subsets[0]))


def _table(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    return storage.rows_table([{k: v for k, v in row.items() if k in schema.names} for row in rows], schema)


def timed(what: str, work: Callable[[], object], times: int = 5) -> None:
    """Print the first time and the median of the next."""
    took = []
    for _ in range(times + 1):
        at = time.process_time()
        work()
        took.append(1000 * (time.process_time() - at))
    print(f"{what:32} {took[0]:8.1f} ms first, {sorted(took[1:])[times // 2]:8.1f} ms then")


def measure(run: str, folder: Path) -> None:
    """Ask the server for each page."""
    from fastapi.testclient import TestClient

    from jobs.review.app import make as application
    from jobs.review.candidates import Candidates
    from jobs.review.desk import Desk
    from jobs.review.guard import Guard
    from jobs.review.preview import Previews
    from jobs.review.store import Store, default_place
    from jobs.review.wishes import Wish

    at = time.process_time()
    store = Store(default_place(run, "picked"), "picked", ReviewConfig())
    candidates = Candidates(run, store, folder / "candidates.sqlite", None, 50)
    print(f"{'start':32} {time.process_time() - at:8.1f} s")
    desk = Desk(run, candidates, Previews(run, MediaLimits(), folder / "previews"), 256)
    client = TestClient(application(desk, Guard(8765), lambda: None), base_url="http://127.0.0.1:8765", follow_redirects=False)
    client.post("/who", json={"name": "Ann"})
    for what, path in PAGES.items():
        timed(what, lambda path=path: client.get(path).raise_for_status())  # type: ignore[misc]
    last = candidates.page(Wish(sort="-path"), 100)[-1]["clip_id"]
    timed("list by path, a last page", lambda: client.get(f"/list?sort=path&after={last}").raise_for_status())
    timed("next", lambda: client.get("/next"))
    names = iter(range(10**6))

    def reject() -> None:
        clip_id = client.get("/next").headers["location"].split("/clip/")[1].split("?")[0]
        body = {"judgement": f"{next(names):012x}", "clip_id": clip_id, "action": "reject", "reason": "dull"}
        client.post("/decide", json=body).raise_for_status()

    timed("next and reject", reject, 200)
    store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make(f"{scratch}/run", int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
        measure(f"{scratch}/run", Path(scratch))
