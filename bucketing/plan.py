"""The plan: which kept clip goes to which shard, in which order. A pure function of the selection and the seed."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, PositiveInt


class ShardConfig(BaseModel):
    """How many samples a shard has; the last one of each bucket may have fewer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: PositiveInt = 512
    keep_cuts: bool = False
    """Keep `cuts/` once the shards are packed. They can be made again, with the same bytes."""


def next_shards(previous: pa.Table) -> dict[str, int]:
    """`<split>/<bucket>` -> number of the first shard that no earlier selection uses."""
    taken: dict[str, int] = {}
    for shard in pc.unique(previous["shard"].drop_null()).to_pylist():
        group, number = shard.rsplit("/shard-", 1)
        taken[group] = max(taken.get(group, 0), int(number) + 1)
    return taken


def assign(selection: pa.Table, seed: int, config: ShardConfig, first: dict[str, int]) -> pa.Table:
    """Fill `shard` (`<split>/<bucket>/shard-000000`) and `position` of the kept rows; the order of rows is kept.

    Within a split and bucket clips are ordered by a hash of seed and clip id, so that a shard mixes sources.
    """
    kept = np.flatnonzero(selection["kept"].to_numpy(zero_copy_only=False))
    rows = selection.take(kept)
    keys = [hashlib.md5(f"{seed}/order/{c}".encode(), usedforsecurity=False).digest() for c in rows["clip_id"].to_pylist()]
    groups = np.array([f"{s}/{b}" for s, b in zip(rows["split"].to_pylist(), rows["bucket"].to_pylist(), strict=True)])
    order = np.lexsort((np.array(keys, dtype="S16"), groups)) if len(kept) else np.array([], dtype=np.int64)
    shards: list[str | None] = [None] * selection.num_rows
    positions: list[int | None] = [None] * selection.num_rows
    present, starts = np.unique(groups[order], return_index=True) if len(kept) else ([], [])
    for group, start, end in zip(present, starts, [*starts[1:], len(order)], strict=True):
        for rank, at in enumerate(order[start:end]):
            row = int(kept[at])
            number = first.get(str(group), 0) + rank // config.samples
            shards[row] = f"{group}/shard-{number:06d}"
            positions[row] = rank % config.samples
    shard, position = (selection.schema.get_field_index(name) for name in ("shard", "position"))
    filled = selection.set_column(shard, "shard", pa.array(shards, pa.string()))
    return filled.set_column(position, "position", pa.array(positions, pa.int64()))
