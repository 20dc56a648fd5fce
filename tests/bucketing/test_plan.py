"""The plan: every kept clip once, full shards, an order that depends on seed and clip ids only, appends that move nothing."""

import hashlib
from collections import Counter

import pyarrow as pa
import pytest

from bucketing.plan import ShardConfig, assign, next_shards
from curation.tables import SELECTION


def selection(count: int, first: int = 0) -> pa.Table:
    rows = []
    for n in range(first, first + count):
        kept = n % 4 != 0
        split = "validation" if n % 10 == 1 else "train"
        where = {"split": split, "bucket": ("v256-1x1-f128", "i256-1x1")[n % 2]} if kept else {}
        rows.append({"clip_id": f"{n:016x}_0000000_0000128", "source_id": f"{n:016x}", "kept": kept, **where})
    return pa.Table.from_pylist(rows, schema=SELECTION)


def test_every_kept_clip_has_one_place() -> None:
    plan = assign(selection(1000), 0, ShardConfig(samples=64), {})
    assert plan.schema == SELECTION and plan.num_rows == 1000
    rows = plan.to_pylist()
    assert all((r["shard"] is not None) == r["kept"] == (r["position"] is not None) for r in rows)
    kept = [r for r in rows if r["kept"]]
    assert all(r["shard"].startswith(f"{r['split']}/{r['bucket']}/shard-0") for r in kept)
    assert len({(r["shard"], r["position"]) for r in kept}) == len(kept)
    sizes = Counter(r["shard"] for r in kept)
    for group in {s.rsplit("/", 1)[0] for s in sizes}:
        own = [sizes[s] for s in sorted(s for s in sizes if s.startswith(group + "/"))]
        assert all(n == 64 for n in own[:-1]) and 0 < own[-1] <= 64


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    rows = selection(300)
    plan = assign(rows, 7, ShardConfig(samples=32), {})
    shuffled = rows.take(list(reversed(range(300))))
    assert assign(shuffled, 7, ShardConfig(samples=32), {}).equals(plan)
    assert not assign(rows, 8, ShardConfig(samples=32), {}).equals(plan)


def test_a_shard_mixes_sources() -> None:
    plan = assign(selection(4000), 0, ShardConfig(samples=100), {}).to_pylist()
    first = [int(r["source_id"], 16) for r in plan if r["shard"] == "train/v256-1x1-f128/shard-000000"]
    assert len(first) == 100 and max(first) - min(first) > 3000


def test_an_append_starts_new_shards() -> None:
    old = assign(selection(300), 0, ShardConfig(samples=32), {})
    first = next_shards(old)
    placed = sum(str(r["shard"]).startswith("train/v256-1x1-f128/") for r in old.to_pylist())
    assert first["train/v256-1x1-f128"] == -(-placed // 32)
    new = assign(selection(100, first=300), 0, ShardConfig(samples=32), first)
    shards = [set(t["shard"].drop_null().to_pylist()) for t in (old, new)]
    assert shards[1] and not shards[0] & shards[1]
    assert next_shards(pa.concat_tables([old, new]))["train/v256-1x1-f128"] > first["train/v256-1x1-f128"]


def test_the_order_is_fixed_for_good() -> None:
    """Another order would make other shards of an old run: it is that of the md5 of seed and clip id."""
    plan = [r for r in assign(selection(200), 3, ShardConfig(), {}).to_pylist() if r["shard"] == "train/i256-1x1/shard-000000"]
    by_hash = sorted(plan, key=lambda r: hashlib.md5(f"3/order/{r['clip_id']}".encode()).hexdigest())
    assert [r["position"] for r in by_hash] == list(range(len(plan))) and len(plan) > 50


def test_nothing_kept_is_no_plan() -> None:
    rows = selection(1)
    assert assign(rows, 0, ShardConfig(), {}).equals(rows)
    assert next_shards(rows) == {}
    with pytest.raises(ValueError, match="greater than 0"):
        ShardConfig(samples=0)
