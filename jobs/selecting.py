"""*Select*: from measured clips to a plan that says which clip goes to which shard, in which order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bucketing import buckets, plan
from curation import run_folder, storage
from curation import select as rules_select
from curation.errors import ConfigError
from curation.rules import SubsetConfig
from curation.tables import CLIPS, SELECTION, SOURCES
from jobs.analyze import done_units
from jobs.config import Config, apply, resolve

MADE_BY = b"reelset_select"


def settings(page: dict[str, Any], file: Path | None, overrides: Sequence[str], rules: Sequence[str] | None) -> Config:
    """A run's own settings with a file's, `--set` and `--rules` on top."""
    tree = {**page}
    if file is not None:
        tree |= yaml.safe_load(file.read_text()) or {}
    for override in overrides:
        apply(tree, override)
    if rules:
        tree["subsets"] = list(rules)
    return resolve(tree)


def select(folder: str, config: Config, subset: SubsetConfig) -> str:
    """Decide for every measured unit that the subset's selection does not cover yet; returns a line for people.

    Rows once written are never changed: later units are decided with the earlier ones counted in the quotas. Other
    rules make the selection anew, unless shards of the old one exist: then ConfigError.
    """
    place = storage.join(folder, "selection", subset.name)
    made_by = _made_by(config, subset)
    if _stale(place, made_by):
        if storage.names(storage.join(folder, "produced", subset.name)):
            raise ConfigError(
                f"shards of {subset.name!r} were made by another selection. Give the new rules another name, or remove "
                f"shards/{subset.name} and produced/{subset.name} first"
            )
        storage.remove(place)
    done = _covered(place)
    units = [u for u in done_units(folder) if u not in done]
    if not units:
        return f"select: {subset.name}: nothing new"
    table = _decide(folder, config, subset, units, storage.read_table(place, SELECTION))
    table = table.replace_schema_metadata({MADE_BY: made_by.encode()})
    storage.write_table(storage.join(place, f"{units[0]}--{units[-1]}.parquet"), table)
    kept = sum(table["kept"].to_pylist())
    return f"select: {subset.name}: {kept} of {table.num_rows} clips kept"


def _decide(folder: str, config: Config, subset: SubsetConfig, units: Sequence[str], previous: pa.Table) -> pa.Table:
    sources = _read(folder, "sources", units, SOURCES)
    clips = _read(folder, "clips", units, CLIPS)
    shapes = {row["source_id"]: row for row in sources.select(["source_id", "pixel_aspect", "rotation"]).to_pylist()}
    fits = {
        row["clip_id"]: _fit(row | shapes[row["source_id"]], subset.bucket_class)
        for row in clips.to_pylist()
        if row["status"] == "ok"
    }
    chosen = rules_select.select(sources, clips, subset, config.seed, previous, rules_select.fit_table(fits))
    taken = plan.next_shards(previous)
    return plan.assign(chosen, config.seed, config.shards, taken)


def _fit(clip: dict[str, Any], bucket_class: int) -> tuple[str | None, str, str | None]:
    choice = buckets.choose(clip, bucket_class)
    return choice.bucket.name if choice.bucket else None, choice.why, choice.misfit


def _read(folder: str, table: str, units: Sequence[str], schema: pa.Schema) -> pa.Table:
    parts = []
    for unit in units:
        with storage.open_read(storage.join(folder, table, f"{unit}.parquet")) as file:
            parts.append(pq.read_table(file, columns=schema.names))
    return pa.concat_tables(parts)


def _made_by(config: Config, subset: SubsetConfig) -> str:
    return run_folder.fingerprint(
        {"seed": config.seed, "subset": subset.model_dump(mode="json"), "shards": config.shards.model_dump(mode="json")}
    )


def _stale(place: str, made_by: str) -> bool:
    for name in storage.names(place, ".parquet"):
        with storage.open_read(storage.join(place, name)) as file:
            metadata = pq.read_schema(file).metadata or {}
        if metadata.get(MADE_BY) != made_by.encode():
            return True
    return False


def _covered(place: str) -> set[str]:
    """Units that the selection's files speak of: each file is named by its first and last unit."""
    covered = set()
    for name in storage.names(place, ".parquet"):
        first, last = (int(u.removeprefix("unit-")) for u in name.removesuffix(".parquet").split("--"))
        covered |= {f"unit-{n:06d}" for n in range(first, last + 1)}
    return covered
