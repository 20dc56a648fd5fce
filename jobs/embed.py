"""*Embed*: each analyzed unit's kept frames through every embedding model, a table a unit and model."""

import json
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from curation import embedding, run_folder, storage
from curation.embedding import EmbeddingConfig, Model
from curation.engine import Chain, Item, Step
from curation.errors import ConfigError
from curation.layout import Vector
from curation.rules import stopped
from curation.tables import CLIPS, COSTS, FRAMES, SOURCES
from jobs.config import Config

MADE_BY = b"reelset_embedding"


def steps(run: str, config: Config) -> list[Step]:
    """The models as pools: those that need no GPU in one, the others in another."""
    groups = [[m for m in config.embeddings if bool(m.gpus) == gpu] for gpu in (False, True)]
    pools = (config.engine.cpu, config.engine.gpu)
    return [Step(EmbedUnits(run, group, config), pool) for group, pool in zip(groups, pools, strict=True) if group]


def after(analyze: Sequence[Step], embed: Sequence[Step]) -> list[Step]:
    """One pipeline of both: what writes a unit embeds it too where both need the same kind of actor."""
    last, *more = (analyze[-1], *embed)
    if more and more[0].pool == last.pool:
        last = Step(Chain((last.worker, more.pop(0).worker)), last.pool)
    return [*analyze[:-1], last, *more]


def missing(run: str, config: Config, units: Sequence[str]) -> list[Item]:
    """Those of these analyzed units that lack a model's table."""
    have = [set(storage.names(folder(run, model.name), ".parquet")) for model in config.embeddings]
    return [{"unit": unit} for unit in units if any(f"{unit}.parquet" not in names for names in have)]


def folder(run: str, name: str) -> str:
    """Where a model's vectors stand."""
    return storage.join(run, "embeddings", name)


def check(run: str, config: Config) -> None:
    """Refuse vectors of another model under the same name: ConfigError with what differs."""
    for model in config.embeddings:
        place = folder(run, model.name)
        for name in storage.names(place, ".parquet")[:1]:
            with storage.open_read(storage.join(place, name)) as file:
                made_by = json.loads((pq.read_schema(file).metadata or {}).get(MADE_BY, b"{}"))
            if made_by != model.decides():
                raise ConfigError(
                    f"embeddings/{model.name} was made with other settings:\n"
                    f"{run_folder.difference(made_by, model.decides())}\nGive this model another name, or remove the folder"
                )


class EmbedUnits:
    """Takes units through the models, reading their kept frames and nothing else of them."""

    def __init__(self, run: str, models: Sequence[EmbeddingConfig], config: Config) -> None:
        self.run = run
        self.models = models
        self.config = config
        self.name = "+".join(model.name for model in models)
        self.loaded: list[Model] = []

    def open(self) -> None:
        self.loaded = [embedding.load(model, f"embeddings.{model.name}") for model in self.models]

    def close(self) -> None:
        self.loaded = []

    def __call__(self, item: Item) -> Item:
        lacking = [
            (config, model)
            for config, model in zip(self.models, self.loaded, strict=True)
            if not storage.exists(storage.join(folder(self.run, config.name), f"{item['unit']}.parquet"))
        ]
        if lacking:
            clips = self._wanted(item["unit"])
            frames = self._read("frames", item["unit"], FRAMES).select(["clip_id", "jpeg"]).to_pylist()
            costs = []
            for config, model in lacking:
                wall, cpu = time.perf_counter(), time.process_time()
                found = embedding.embed(model, clips, frames)
                self._write(item["unit"], config, model.width, found)
                resident = psutil.Process().memory_info().rss / 2**20  # `ru_maxrss` begins with that of who started us
                spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "peak_mb": resident}
                costs.append({"unit": item["unit"], "stage": f"embed:{config.name}", "rows": len(found), "bytes": 0, **spent})
            name = f"{item['unit']}--{'+'.join(config.name for config, _ in lacking)}.parquet"
            storage.write_table(storage.join(self.run, "costs", name), storage.rows_table(costs, COSTS))
        return item

    def _wanted(self, unit: str) -> list[dict[str, Any]]:
        """The clips that some subset may still take, all with `score_all`."""
        clips = self._read("clips", unit, CLIPS)
        rows = [row for row in clips.to_pylist() if row["status"] == "ok"]
        if self.config.score_all or not rows:
            return rows
        out: set[str] = set()
        for source in self._read("sources", unit, SOURCES).to_pylist():
            own = [row for row in rows if row["source_id"] == source["source_id"]]
            if own:
                out |= stopped(storage.rows_table(own, CLIPS), self.config.subsets, source)
        return [row for row in rows if row["clip_id"] not in out]

    def _read(self, table: str, unit: str, schema: pa.Schema) -> pa.Table:
        with storage.open_read(storage.join(self.run, table, f"{unit}.parquet")) as file:
            return pq.read_table(file).select(schema.names)

    def _write(self, unit: str, config: EmbeddingConfig, width: int, found: dict[str, Vector | None]) -> None:
        """Commit a unit's vectors, sorted by clip."""
        ids = sorted(found)
        schema = embedding.schema(width).with_metadata({MADE_BY: json.dumps(config.decides(), sort_keys=True).encode()})
        vectors = pa.array([found[i] for i in ids], schema.field("vector").type)
        table = pa.Table.from_arrays([pa.array(ids, pa.string()), vectors], schema=schema)
        storage.write_table(storage.join(folder(self.run, config.name), f"{unit}.parquet"), table)
