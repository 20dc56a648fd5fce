"""*Caption*: what each unit's cut clips show, told by the models, a table a unit."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import psutil
import pyarrow.parquet as pq

from bucketing import pack
from bucketing.shard_format import IMAGE
from captioning.client import Client, Row
from captioning.config import CaptionConfig
from captioning.showing import Clip
from curation import storage
from curation.engine import Item
from curation.tables import CAPTIONS, COSTS

WRITE_ROWS = 64
WRITE_S = 10.0
"""A unit's table is written anew after so many captions or seconds: what a kill can cost."""
OF_CLIP = ("clip_id", "source_id", "start_frame", "end_frame", "start_s", "end_s")
"""What a caption's row says of its clip."""


def written(run: str, unit: str) -> dict[str, Row]:
    """clip_id -> row of `CAPTIONS` of a unit; empty where there are none yet."""
    if not storage.exists(_place(run, unit)):
        return {}
    with storage.open_read(_place(run, unit)) as file:
        return {row["clip_id"]: row for row in pq.read_table(file).to_pylist()}


def forget_errors(run: str) -> int:
    """Remove the rows of clips that have no caption, so that they are asked for again. Returns how many."""
    forgotten = 0
    for name in storage.names(storage.join(run, "captions"), ".parquet"):
        rows = written(run, unit := name.removesuffix(".parquet"))
        good = [row for row in rows.values() if row["status"] == "ok"]
        if len(good) < len(rows):
            forgotten += len(rows) - len(good)
            _write(run, unit, good)
    return forgotten


def said(run: str) -> str:
    """How many clips have captions, by whom, and why the others have none."""
    folder = storage.join(run, "captions")
    table = storage.read_table(folder, CAPTIONS, ["model", "error_code"]) if storage.names(folder, ".parquet") else None
    if table is None or not table.num_rows:
        return "captions: no clip was kept"
    models, codes = (Counter(table[name].drop_null().to_pylist()) for name in ("model", "error_code"))
    by = ", ".join(f"{name} {n / table.num_rows:.0%}" for name, n in models.most_common())
    why = f" + {codes.total()} error ({', '.join(f'{n} {code}' for code, n in codes.most_common())})" if codes else ""
    return f"captions: {table.num_rows} clips ({by}) = {table.num_rows - codes.total()} ok{why}"


class CaptionUnits:
    """Shows the cuts of a unit to the models. What has a row, caption or error, is never asked again."""

    name = "caption"

    def __init__(self, run: str, config: CaptionConfig) -> None:
        self.run = run
        self.config = config

    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = self.loop.run_until_complete(self._connect())

    async def _connect(self) -> Client:
        return Client(self.config)

    def close(self) -> None:
        if hasattr(self, "client"):
            self.loop.run_until_complete(self.client.close())
            self.loop.close()

    def __call__(self, item: Item) -> Item:
        rows = written(self.run, item["unit"])
        todo = self._todo(item["unit"], [clip_id for clip_id, _ in item["clips"] if clip_id not in rows])
        if todo:
            wall, cpu = time.perf_counter(), time.process_time()
            self.loop.run_until_complete(self._fill(item["unit"], rows, todo))
            spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            self._cost(item["unit"], len(todo), spent)
        mine = [rows[clip_id] for clip_id in {clip_id for clip_id, _ in item["clips"]} & rows.keys()]
        good = sum(row["status"] == "ok" for row in mine)
        return item | {"captioned": good, "uncaptioned": len(mine) - good}

    def _todo(self, unit: str, clip_ids: Iterable[str]) -> dict[str, tuple[Clip, Row]]:
        """What is shown of each clip, and what its row says of that: the smallest of its cuts, which all show one span."""
        lacking = set(clip_ids)
        made = [row for row in pack.cuts(self.run, unit).values() if row["status"] == "ok"] if lacking else []
        smallest: dict[str, dict[str, Any]] = {}
        for cut in sorted(made, key=lambda row: (row["width"] * row["height"], row["key"])):
            smallest.setdefault(cut["key"].rpartition("-")[0], cut)
        if not smallest:
            return {}
        with storage.open_read(storage.join(self.run, "clips", f"{unit}.parquet")) as file:
            clips = pq.read_table(file, columns=list(OF_CLIP)).to_pylist()
        todo = {}
        for clip in clips:
            shown = smallest.get(clip["clip_id"])
            if shown is not None and clip["clip_id"] in lacking:
                kind = "image" if shown["member"].endswith(f".{IMAGE}") else "video"
                asked = Clip(clip["clip_id"], kind, partial(pack.cut_bytes, self.run, unit, shown))
                todo[asked.clip_id] = asked, clip | {"shown_key": shown["key"], "shown_sha256": shown["sha256"]}
        return todo

    async def _fill(self, unit: str, rows: dict[str, Row], todo: Mapping[str, tuple[Clip, Row]]) -> None:
        """Add the clips' rows to `rows`, and write these time and again."""
        new, at = 0, time.monotonic()
        try:
            async for row in self.client.rows([clip for clip, _ in todo.values()]):
                rows[row["clip_id"]] = todo[row["clip_id"]][1] | row
                new += 1
                if new >= WRITE_ROWS or time.monotonic() - at > WRITE_S:
                    await asyncio.to_thread(_write, self.run, unit, list(rows.values()))
                    new, at = 0, time.monotonic()
        finally:
            if new:
                _write(self.run, unit, list(rows.values()))

    def _cost(self, unit: str, clips: int, spent: Mapping[str, float]) -> None:
        resident = psutil.Process().memory_info().rss / 2**20
        cost = {"unit": unit, "stage": "caption", "rows": clips, "bytes": 0, "peak_mb": resident, **spent}
        storage.write_table(storage.join(self.run, "costs", f"{unit}--caption.parquet"), storage.rows_table([cost], COSTS))


def _place(run: str, unit: str) -> str:
    return storage.join(run, "captions", f"{unit}.parquet")


def _write(run: str, unit: str, rows: Sequence[Row]) -> None:
    """Replace a unit's table; sorted by clip."""
    storage.write_table(_place(run, unit), storage.rows_table(sorted(rows, key=lambda row: row["clip_id"]), CAPTIONS))
