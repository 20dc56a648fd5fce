"""*Produce*: cut what the missing shards need, a source at a time, have it captioned, then pack the shards."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bucketing import buckets
from bucketing.cut import Cut, EncodeConfig, Made, Turn, cut_image, cut_video
from bucketing.pack import Bound, Described, cuts, pack_shard, write_cuts
from captioning import answers
from captioning.config import CaptionConfig
from captioning.text import training_text
from curation import attempts, run_folder, storage
from curation.child import Child, shared
from curation.engine import Item, Step
from curation.errors import ClipError, ConfigError, SourceError
from curation.media import MediaLimits
from curation.review import Row, mend, mended_id
from curation.rules import SubsetConfig
from curation.tables import SELECTION, SOURCES
from jobs import caption
from jobs.config import Config
from jobs.review import selected


@dataclass(frozen=True)
class Missing:
    """Items for the pools: units to cut and to caption, and shards to pack."""

    cuts: list[Item]
    shards: list[Item]


def missing(run: str, config: Config) -> Missing:
    """What the selections planned and the run folder lacks. A shard is there when its index is."""
    shards: list[Item] = []
    wanted: dict[str, set[tuple[str, int]]] = defaultdict(set)
    mended: dict[str, set[tuple[str, int]]] = defaultdict(set)
    units = _unit_of_source(run)
    for subset in config.subsets:
        place = storage.join(run, "shards", subset.name)
        done = [u.removeprefix(f"{place}/").removesuffix(".parquet") for u in storage.walk(place, ".parquet")]
        for shard, rows in groupby(_planned(run, subset, units, done), key=itemgetter(0)):
            samples = []
            for _, clip_id, unit, judgement in rows:
                assert unit, f"{clip_id} is selected, and its source is in no unit"
                own = (clip_id if judgement is None else mended_id(clip_id, judgement), subset.bucket_class)
                (wanted if judgement is None else mended)[unit].add(own)
                samples.append({"clip_id": clip_id, "unit": unit, "key": cut_key(*own), "judgement": judgement})
            shards.append({"subset": subset.name, "shard": shard, "samples": samples})
    there = set(storage.names(storage.join(run, "cuts"), ".parquet"))
    lacking = []
    for unit in sorted(wanted.keys() | mended.keys()):
        clips = wanted[unit]
        captions = caption.written(run, unit) if config.caption.models else {}
        # What a caption was written for is made again where it is gone: packing compares its bytes.
        clips |= {_clip_of(captions[clip_id]["shown_key"]) for clip_id, _ in clips if clip_id in captions}
        made = cuts(run, unit) if f"{unit}.parquet" in there else {}
        uncut = {cut_key(*clip) for clip in clips | mended[unit]} - made.keys()
        shown = {_clip_of(key)[0] for key, cut in made.items() if cut["status"] == "ok"}
        silent = {clip_id for clip_id, _ in clips} & shown - captions.keys() if config.caption.models else set()
        if uncut or silent:
            lacking.append({"unit": unit, "clips": sorted(clips), "mended": sorted(mended[unit])})
    return Missing(lacking, shards)


def prepare(run: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse other settings of *produce* where shards exist; cuts that other settings made are removed.

    Raises ConfigError with the difference.
    """
    if old == new:
        return
    if storage.walk(storage.join(run, "shards"), ".parquet"):
        raise ConfigError(
            f"{run!r} has shards made with other settings:\n{run_folder.difference(old, new)}\n"
            "Use the old settings, or remove shards/ and produced/ first."
        )
    if old["encode"] != new["encode"]:
        if storage.names(storage.join(run, "captions"), ".parquet"):
            raise ConfigError(
                f"{run!r} has captions of clips cut with other settings:\n{run_folder.difference(old, new)}\n"
                "Use the old settings, or remove captions/ first."
            )
        storage.remove(storage.join(run, "cuts"))


def cut_key(clip_id: str, bucket_class: int) -> str:
    """A sample's name among its unit's cuts: subsets of one bucket class share it."""
    return f"{clip_id}-{bucket_class}"


def _clip_of(key: str) -> tuple[str, int]:
    """(clip_id, bucket class) of a `cut_key`."""
    clip_id, _, bucket_class = key.rpartition("-")
    return clip_id, int(bucket_class)


def _unit_of_source(run: str) -> pa.Table:
    """`source_id, unit` of every source."""
    return storage.read_table(storage.join(run, "sources"), SOURCES, ["source_id", "unit"])


def _planned(
    run: str, subset: SubsetConfig, units: pa.Table, done: Sequence[str]
) -> Iterator[tuple[str, str, str, str | None]]:
    """(shard, clip_id, unit, judgement) of the planned samples that are in no shard of `done`, shard by shard, in order."""
    judgement = "judgement" if subset.review is not None else "NULL"
    query = f"""SELECT shard, clip_id, unit, {judgement} FROM selection LEFT JOIN units USING (source_id)
                WHERE shard IS NOT NULL AND shard NOT IN (SELECT shard FROM done) ORDER BY shard, position"""
    columns = ["clip_id", "source_id", "shard", "position", *(["judgement"] if subset.review is not None else [])]
    table = storage.read_table(storage.join(run, "selection", subset.name), SELECTION, columns)
    with storage.database() as connection:
        connection.register("selection", table)
        connection.register("units", units)
        connection.register("done", pa.table({"shard": pa.array(done, pa.string())}))
        found = connection.execute(query)
        while rows := found.fetchmany(10_000):
            yield from rows


def cut_steps(run: str, config: Config) -> list[Step]:
    """The pools that cut units and, where the config names models, caption them; the slower one holds back the other."""
    cut = Step(CutUnits(run, config.encode, config.limits), config.engine.cpu)
    return [cut, Step(caption.CaptionUnits(run, config.caption), config.engine.caption)] if config.caption.models else [cut]


def counted(result: Item) -> Item:
    """What the log says of a unit that was cut, and captioned."""
    return {name: value for name, value in result.items() if name not in ("clips", "mended")}


def pack_steps(run: str, config: Config) -> list[Step]:
    """The pool that packs shards."""
    return [Step(PackShards(run, config.caption), config.engine.write)]


def clean(run: str, config: Config) -> None:
    """Remove the cuts once every planned shard is there."""
    if not config.shards.keep_cuts and not missing(run, config).shards:
        storage.remove(storage.join(run, "cuts"))


class CutUnits:
    """Cuts the planned samples of a unit into `cuts/<unit>.tar`; decoding happens in the killable child."""

    name = "cut"

    def __init__(self, run: str, encode: EncodeConfig, limits: MediaLimits) -> None:
        self.run = run
        self.encode = encode
        self.limits = limits
        self.child: Child | None = None

    def open(self) -> None:
        self.child = shared(self.limits)

    def close(self) -> None:
        if self.child is not None:
            self.child.close()

    def __call__(self, item: Item) -> Item:
        unit, there = item["unit"], cuts(self.run, item["unit"])
        wanted = {cut_key(*clip) for clip in (*item["clips"], *item["mended"])}
        if wanted <= there.keys():  # by an actor that died before it could say so
            rows = list(there.values())
        else:
            rows = write_cuts(self.run, unit, self.made(unit, item["clips"], item["mended"]))
        made = sum(row["status"] == "ok" for row in rows)
        return item | {"cut": made, "failed": len(rows) - made}

    def made(
        self, unit: str, clips: Sequence[tuple[str, int]], mended: Sequence[tuple[str, int]] = ()
    ) -> Iterator[tuple[Made, dict[str, Any]]]:
        """The samples of a unit, source by source, each with the facts of its index row. `mended` has what people made of
        clips (`review.mended_id`)."""
        known = unit_rows(self.run, unit)
        known |= _mended_rows(self.run, known, [clip_id for clip_id, _ in mended])
        fixed = {clip_id for clip_id, _ in mended}
        urls = {row["path"]: row["url"] for row in _rows(self.run, "units", unit)}
        times = {row["source_id"]: row["time_s"] for row in _rows(self.run, "series", unit, ["source_id", "time_s"])}
        of_source: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for clip_id, bucket_class in (*clips, *mended):
            of_source[known[clip_id][0]["source_id"]].append((clip_id, bucket_class))
        for source_id, wanted in of_source.items():
            source = known[wanted[0][0]][1]
            shape = {name: source[name] for name in ("pixel_aspect", "rotation")}
            cuts = [_cut(known[c][0] | shape, times.get(source_id), size, c in fixed) for c, size in wanted]
            with tempfile.TemporaryDirectory(prefix="cut-", dir=storage.scratch()) as folder:
                for made, cut in zip(self.make(urls[source["path"]], source, cuts, folder), cuts, strict=True):
                    yield made, _facts(cut)
        attempts.at()

    def make(self, url: str, source: Mapping[str, Any], cuts: list[Cut], folder: str) -> list[Made]:
        """Cut one source; where the source fails, each of its samples fails with its code."""
        assert self.child is not None, "open() comes first"
        try:
            attempts.at(source["source_id"])
            with storage.local_copy(url) as path:
                if source["kind"] == "image":
                    return self.child.call(cut_image, str(path), cuts, self.encode, self.limits, folder)
                turn = Turn(source["width"], source["height"], source["rotation"])
                return self.child.call(cut_video, str(path), cuts, turn, self.encode, self.limits, folder)
        except SourceError as error:
            return [Made(cut.key, None, error.code, error.message) for cut in cuts]


class PackShards:
    """Packs planned shards from the units' cuts."""

    name = "pack"

    def __init__(self, run: str, config: CaptionConfig) -> None:
        self.run = run
        self.config = config

    def open(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to stop."""

    def __call__(self, item: Item) -> Item:
        known = lru_cache(maxsize=64)(lambda unit: unit_rows(self.run, unit))
        written = lru_cache(maxsize=64)(lambda unit: caption.written(self.run, unit))
        judged = {s["clip_id"]: s["judgement"] for s in item["samples"] if s["judgement"] is not None}
        said = selected.judgements(self.run, list(judged.values()))

        def describe(unit: str, clip_id: str, fps: float | None) -> Described:
            clip, source = known(unit)[clip_id]
            story = {"clip": clip, "source": source, "subset": item["subset"]}
            if clip_id in judged:
                own = said[judged[clip_id]]
                return Described(story | selected.told(own), selected.text(own, fps, self.config))
            if not self.config.models:
                return Described(story, (source.get("caption") or "").strip() or None)
            row = written(unit).get(clip_id)
            if row is None:
                raise ClipError("caption_missing", "run the part that captions first")
            if row["status"] != "ok":
                raise ClipError(row["error_code"], row["error_message"])
            bound = Bound(row["shown_key"], row["shown_sha256"], row["start_frame"], row["end_frame"])
            told = {"caption": {name: row[name] for name in TOLD}}
            return Described(story | told, training_text(row["caption"], clip, fps, self.config), bound)

        return pack_shard(self.run, item["subset"], item["shard"], item["samples"], describe)


TOLD = ("caption", *answers.FIELDS, "model", "prompt", "prompt_sha256", "shown_key", "shown_sha256", "frames_shown")
"""What a sample's `.json` says of its caption."""


def unit_rows(run: str, unit: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """clip_id -> (its row of `clips`, its source's row of `sources`), for one unit."""
    sources = {row["source_id"]: row for row in _rows(run, "sources", unit)}
    return {row["clip_id"]: (row, sources[row["source_id"]]) for row in _rows(run, "clips", unit)}


def _mended_rows(run: str, known: Mapping[str, tuple[Row, Row]], ids: Sequence[str]) -> dict[str, tuple[Row, Row]]:
    """What people made of a unit's clips, by its `mended_id`: the clip's row with their span, and its source's row."""
    said = selected.judgements(run, [id.rpartition("-")[2] for id in ids])
    rows = ((judgement, known[judgement["clip_id"]]) for judgement in said.values())
    return {row["clip_id"]: (row, source) for row, source in ((mend(clip, j), source) for j, (clip, source) in rows)}


def _rows(run: str, table: str, unit: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    with storage.open_read(storage.join(run, table, f"{unit}.parquet")) as file:
        return pq.read_table(file, columns=columns).to_pylist()  # type: ignore[no-any-return]


def _cut(clip: Mapping[str, Any], times: Sequence[float] | None, bucket_class: int, fixed: bool) -> Cut:
    start, end = clip["start_frame"], clip["end_frame"]
    own = np.asarray(times[start:end] if times else [0.0], dtype=np.float64)
    choice = buckets.choose(clip, bucket_class, fixed)
    return Cut(cut_key(clip["clip_id"], bucket_class), start, end, own, clip["end_s"], choice)


def _facts(cut: Cut) -> dict[str, Any]:
    assert cut.choice.bucket is not None
    width, height = cut.choice.bucket.size
    fps = float(cut.choice.fps) if cut.choice.fps else None
    return {"frames": cut.choice.bucket.frames, "fps": fps, "width": width, "height": height}
