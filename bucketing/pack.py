"""*Pack*: a shard from byte ranges of the units' cuts, by plan. One idempotent task; the index, last, is its commit."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bucketing.cut import Made
from bucketing.shard_format import CAPTION, INDEX, STORY, Facts, TarWriter, story
from curation import storage
from curation.errors import ClipError, StageError
from curation.tables import PRODUCED

CUTS = pa.schema(
    [
        *INDEX,
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("first_frame", pa.int64()),
        ("last_frame", pa.int64()),
        ("crop", pa.list_(pa.int32())),
        ("off_s", pa.float64()),
    ]
)
"""The index of a unit's cuts, `cuts/<unit>.parquet` beside `cuts/<unit>.tar`: one row a planned sample, made or not."""

SHOWN = ("first_frame", "last_frame", "crop", "off_s")
"""What a sample shows of its source, passed on to its `.json`."""


@dataclass(frozen=True)
class Bound:
    """What the writer of a caption was shown: this span of the source, as the unit's cut `key` of these bytes."""

    key: str
    sha256: str
    start_frame: int
    end_frame: int


@dataclass(frozen=True)
class Described:
    """What is known of a clip, and its training text. `bound` says what a text was written for, where a model wrote it."""

    known: dict[str, Any]
    text: str | None
    bound: Bound | None = None


Describe = Callable[[str, str, float | None], Described]
"""(unit, clip_id, the sample's frame rate) -> what is known. Raises ClipError where the clip must not be written."""


def cuts(run: str, unit: str) -> dict[str, dict[str, Any]]:
    """Key -> row of `CUTS` of every sample that a unit's cuts speak of, made or not; empty where there are none yet."""
    if not storage.exists(_place(run, unit, "parquet")):
        return {}
    return {row["key"]: row for row in _read(_place(run, unit, "parquet"))}


def cut_bytes(run: str, unit: str, cut: Mapping[str, Any]) -> bytes:
    """The file of one cut of a unit, by its row of `CUTS`. Raises StageError where it is not the one its index speaks of."""
    data = storage.read_bytes(_place(run, unit, "tar"), cut["offset"], cut["size"])
    if hashlib.sha256(data).hexdigest() != cut["sha256"]:
        raise StageError("stage_failed", f"cuts/{unit}.tar holds other bytes of {cut['member']} than its index says")
    return data


def write_cuts(run: str, unit: str, made: Iterable[tuple[Made, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Commit a unit's cuts: the tar as they come, then its index. Each comes with its `frames, fps, width, height`.

    An index of older cuts goes first: it must never speak of another tar.
    """
    storage.remove(_place(run, unit, "parquet"))
    rows: list[dict[str, Any]] = []
    with storage.committed(_place(run, unit, "tar")) as out:
        tar = TarWriter(out)
        for cut, facts in made:
            rows.append(_cut_row(tar, cut, Facts(**facts)))
        tar.close()
    storage.write_table(_place(run, unit, "parquet"), storage.rows_table(rows, CUTS))
    return rows


def pack_shard(run: str, subset: str, shard: str, samples: Sequence[Mapping[str, Any]], describe: Describe) -> dict[str, Any]:
    """Write one shard, its rows of `produced/`, and last its index. `shard` is `<split>/<bucket>/shard-000000`.

    `samples` come in the order of the plan, each with `clip_id`, `unit` and `key`, its name among the unit's cuts. A
    planned sample whose cut failed is left out of the shard and said in `produced/` with its code. A shard that has its
    index is not written again. Raises StageError where a cut's bytes are not the ones its index speaks of.
    """
    place = storage.join(run, "shards", subset, shard)
    report = storage.join(run, "produced", subset, f"{shard.replace('/', '--')}.parquet")
    if storage.exists(f"{place}.parquet") and storage.exists(report):
        return _said(subset, shard, _read(report))
    of_unit = {unit: cuts(run, unit) for unit in sorted({s["unit"] for s in samples})}
    bucket = shard.split("/")[1]
    produced = []
    with storage.committed(f"{place}.tar") as out:
        tar = TarWriter(out)
        for sample in samples:
            produced.append(_add(tar, run, sample, of_unit[sample["unit"]], describe) | {"shard": shard, "bucket": bucket})
        tar.close()
    storage.write_table(report, storage.rows_table(produced, PRODUCED))
    storage.write_table(f"{place}.parquet", tar.index())
    return _said(subset, shard, produced)


def _said(subset: str, shard: str, produced: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    written = sum(row["status"] == "ok" for row in produced)
    return {"subset": subset, "shard": shard, "samples": written, "failed": len(produced) - written}


def _place(run: str, unit: str, suffix: str) -> str:
    return storage.join(run, "cuts", f"{unit}.{suffix}")


def _read(url: str) -> list[dict[str, Any]]:
    with storage.open_read(url) as file:
        return pq.read_table(file).to_pylist()  # type: ignore[no-any-return]


def _cut_row(tar: TarWriter, cut: Made, facts: Facts) -> dict[str, Any]:
    """Append one cut to the unit's tar; its row of `CUTS`."""
    if cut.file is None or cut.shown is None:
        return {"key": cut.key, "status": "error", "error_code": cut.error_code, "error_message": cut.error_message}
    file = Path(cut.file)
    row = tar.add(cut.key, file.suffix[1:], file.read_bytes(), facts)
    file.unlink()
    return {**row, "status": "ok", **vars(cut.shown)}


def _add(
    tar: TarWriter, run: str, sample: Mapping[str, Any], of_unit: Mapping[str, Mapping[str, Any]], describe: Describe
) -> dict[str, Any]:
    """Append one sample; its row of `produced`."""
    key, unit = sample["clip_id"], sample["unit"]
    cut = of_unit.get(sample["key"])
    if cut is None:
        return {"clip_id": key, "status": "error", "error_code": "stage_failed", "error_message": f"cuts/{unit} has no {key}"}
    if cut["status"] != "ok":
        return {"clip_id": key} | {name: cut[name] for name in ("status", "error_code", "error_message")}
    try:
        described = describe(unit, key, cut["fps"])
        if described.bound is not None:
            _check(described.bound, cut, of_unit)
    except ClipError as error:
        return {"clip_id": key, "status": "error", "error_code": error.code, "error_message": error.message}
    facts = Facts(cut["frames"], cut["fps"], cut["width"], cut["height"])
    row = tar.add(key, cut["member"].rsplit(".", 1)[-1], cut_bytes(run, unit, cut), facts)
    facts_shown = {name: cut[name] for name in ("sha256", *SHOWN)}
    tar.add(key, STORY, story(described.known, {**vars(facts), **facts_shown}), facts)
    if described.text:
        tar.add(key, CAPTION, described.text.encode(), facts)
    return {
        "clip_id": key,
        "status": "ok",
        "fps": cut["fps"],
        "frames": cut["frames"],
        "offset": row["offset"],
        "bytes": row["size"],
        "sha256": cut["sha256"],
    }


def _check(bound: Bound, cut: Mapping[str, Any], of_unit: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ClipError caption_mismatch where a caption was written for other pictures than a cut's."""
    shown = of_unit.get(bound.key)
    if shown is None or shown["sha256"] != bound.sha256:
        has = "is not there" if shown is None else f"has sha256 {shown['sha256']}"
        raise ClipError("caption_mismatch", f"written for {bound.key} of sha256 {bound.sha256}, which {has}")
    for made in (shown, cut):
        if not bound.start_frame <= made["first_frame"] <= made["last_frame"] < bound.end_frame:
            raise ClipError(
                "caption_mismatch",
                f"written for frames {bound.start_frame} to {bound.end_frame}; {made['key']} shows "
                f"{made['first_frame']} to {made['last_frame']}",
            )
