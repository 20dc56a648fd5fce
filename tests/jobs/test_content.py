"""The comparison of a run's clips, from tables of planted vectors: blocks, kills, later units, other settings, bad vectors."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation import clusters, embedding, storage
from curation.clusters import ClusterConfig
from curation.errors import ConfigError
from curation.layout import Vector
from curation.tables import CLIPS, SOURCES
from jobs import content, selecting
from jobs.analyze import done_units
from jobs.config import Config, resolve
from jobs.content import Content
from tests.curation.test_duplicates import near, unit
from tests.promised import fingerprints

WIDTH, UNIT = 32, 10


def settings(engine: str = "inline", subset: dict[str, Any] | None = None, **more: Any) -> Config:
    whole = {"name": "x", "validation_share": 0, **(subset or {})}
    return resolve({"engine": {"kind": engine}, "subsets": [whole], "index": {"block_clips": 20}, **more})


def planted(count: int, seed: int = 0) -> tuple[Vector, dict[int, int]]:
    """Vectors about four centres, one in five near an earlier one; copy -> original."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((4, WIDTH)))
    found = unit(0.7 * centres[rng.integers(0, 4, count) ** 2 // 3] + 0.7 * unit(rng.standard_normal((count, WIDTH))))
    copies = {n: int(rng.integers(n)) for n in range(4, count, 5)}
    for n, original in copies.items():
        found[n] = near(found[original], 0.97, rng)
    return found, copies


def measured(folder: Path, found: Vector | list[list[float] | None], start: int = 0) -> Path:
    """A run folder as *analyze* and *embed* leave it: one clip of ten seconds a source, ten sources a unit."""
    for first in range(0, len(found), UNIT):
        rows = found[first : first + UNIT]
        unit_name, ids = f"unit-{(start + first) // UNIT:06d}", [f"c{start + first + n:05d}" for n in range(len(rows))]
        common = {"kind": "video", "status": "ok", "duration_s": 10.0, "width": 640, "height": 360, "frames": 300, "fps": 30.0}
        clips = [{**common, "clip_id": i, "source_id": f"s{i}"} for i in ids]
        sources = [{**common, "source_id": f"s{i}", "unit": unit_name, "bytes": 1} for i in ids]
        vectors = [None if row is None else list(row) for row in rows]
        width = len(next((row for row in vectors if row is not None), [0] * WIDTH))
        tables = {
            "clips": storage.rows_table(clips, CLIPS),
            "embeddings/layout": pa.table(
                [pa.array(ids), pa.array(vectors, pa.list_(pa.float32(), width))], ["clip_id", "vector"]
            ),
            "sources": storage.rows_table(sources, SOURCES),
        }
        tables["embeddings/layout"] = tables["embeddings/layout"].cast(embedding.schema(width))
        for name, table in tables.items():
            storage.write_table(str(folder / name / f"{unit_name}.parquet"), table)
    return folder


def compare(folder: Path, config: Config, stop_after: int | None = None) -> list[str]:
    """Everything but the selection; with `stop_after` that many files of an engine's part, then an interrupt."""
    whole, said, left = Content(str(folder), config), [], stop_after
    whole.drop_stale()
    units = done_units(str(folder))

    def each(items: list[Any], worker: type[content.Worker]) -> None:
        nonlocal left
        for _ in whole.work(worker, items, str(folder / "attempts")):
            if left is not None:
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt

    each(whole.unindexed(units), content.Index)
    each(whole.uncompared(), content.Compare)
    said.append(whole.group(units))
    said.append(whole.train() or "")
    each(whole.unassigned(), content.Assign)
    whole.describe()
    return said


def read(folder: Path, table: str) -> list[dict[str, Any]]:
    return storage.read_table(str(folder / table)).to_pylist()


def test_copies_are_found_within_and_across_blocks_and_every_clip_has_a_concept(tmp_path: Path) -> None:
    found, copies = planted(75)
    said = compare(measured(tmp_path, found), settings())
    heads = {n: n for n in range(75)}
    for n, original in copies.items():
        heads[n] = heads[original]
    rows = read(tmp_path, "duplicates")
    assert {int(r["clip_id"][1:]) for r in rows} == set(copies)
    assert all(heads[int(r["clip_id"][1:])] == int(r["duplicate_of"][1:]) for r in rows)
    assert said[0] == f"duplicates: {len(copies)} of 75 clips, by layout at 0.91, every pair looked at"
    assert len(list((tmp_path / "index/blocks/layout").glob("*.faiss"))) == 4
    concepts, clusters = read(tmp_path, "concepts"), read(tmp_path, "clusters")
    assert sorted(r["clip_id"] for r in concepts) == [f"c{n:05d}" for n in range(75)]
    own = Counter(r["cluster"] for r in concepts if r["clip_id"] not in {d["clip_id"] for d in rows})
    assert {c["cluster"]: c["size"] for c in clusters} == own
    for cluster in clusters:
        assert cluster["weight"] == 1 / cluster["size"] ** 0.5 and 0 < cluster["tightness"] <= 1
        best = sorted(
            (r for r in concepts if r["cluster"] == cluster["cluster"]), key=lambda r: (-r["similarity"], r["clip_id"])
        )
        assert cluster["exemplars"] == [r["clip_id"] for r in best if r["clip_id"] in own_ids(concepts, rows)][:6]


def own_ids(concepts: list[dict[str, Any]], duplicates: list[dict[str, Any]]) -> set[str]:
    return {r["clip_id"] for r in concepts} - {d["clip_id"] for d in duplicates}


def test_one_block_or_many_find_the_same(tmp_path: Path) -> None:
    found, _ = planted(75)
    one = measured(tmp_path / "one", found)
    many = measured(tmp_path / "many", found)
    compare(one, settings(index={"block_clips": 1000}))
    compare(many, settings(index={"block_clips": 1}))
    for table in ("duplicates", "concepts", "clusters"):
        assert sorted(map(str, read(one, table))) == sorted(map(str, read(many, table)))


def test_a_kill_anywhere_changes_no_byte(tmp_path: Path) -> None:
    found, _ = planted(75)
    whole = measured(tmp_path / "whole", found)
    compare(whole, settings())
    files = len(list((whole / "index/blocks/layout").glob("*.faiss"))) * 2 + len(list((whole / "index/pairs").iterdir()))
    wanted = fingerprints(str(whole))
    for stop_after in range(0, files, 3):
        part = measured(tmp_path / f"killed-{stop_after}", found)
        with pytest.raises(KeyboardInterrupt):
            compare(part, settings(), stop_after)
        compare(part, settings())
        assert fingerprints(str(part)) == wanted


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.timeout(120)
def test_actors_write_the_same_bytes(tmp_path: Path) -> None:
    found, _ = planted(75)
    inline, ray = (measured(tmp_path / name, found) for name in ("inline", "ray"))
    compare(inline, settings())
    compare(ray, settings("ray"))
    assert fingerprints(str(ray)) == fingerprints(str(inline))


def test_later_units_leave_earlier_rows_alone_and_are_compared_with_them(tmp_path: Path) -> None:
    found, copies = planted(80)
    folder = measured(tmp_path, found[:40])
    compare(folder, settings())
    before = {p: p.read_bytes() for p in folder.rglob("*.parquet") if "clusters" not in p.parts}
    measured(folder, found[40:], start=40)
    said = compare(folder, settings())
    assert all(p.read_bytes() == data for p, data in before.items())
    assert {int(r["clip_id"][1:]) for r in read(folder, "duplicates")} == set(copies)
    assert said[1] == "", "later clips are assigned to the centroids that there are"
    assert len(read(folder, "concepts")) == 80
    assert sum(c["size"] for c in read(folder, "clusters")) == 80 - len(copies)
    assert compare(folder, settings())[0] == "duplicates: nothing new"
    measured(folder, planted(400, seed=9)[0], start=80)
    assert compare(folder, settings())[1].startswith("clusters: 5, trained when the run had fewer clips; now there would be 1")


def test_a_unit_that_is_late_is_compared_and_selected_too(tmp_path: Path) -> None:
    found, copies = planted(80)
    whole = measured(tmp_path / "whole", found)
    compare(whole, settings(index={"block_clips": 10}))
    folder = measured(tmp_path / "late", found)
    config = settings(index={"block_clips": 10})
    late = {p: p.read_bytes() for p in folder.rglob("unit-000003.parquet")}
    for place in late:
        place.unlink()
    compare(folder, config)
    selecting.select(str(folder), config, config.subsets[0])
    for place, data in late.items():
        place.write_bytes(data)
    compare(folder, config)
    line = selecting.select(str(folder), config, config.subsets[0])
    assert line.endswith("of 10 clips kept")
    assert {r["clip_id"] for r in read(folder, "selection/x")} == {f"c{n:05d}" for n in range(80)}
    ends = [{r["clip_id"], r["duplicate_of"]} for r in read(folder, "duplicates")]
    late_pairs = {n: o for n, o in copies.items() if 30 <= n < 40 or 30 <= o < 40}
    assert late_pairs and all(any({f"c{n:05d}", f"c{o:05d}"} & pair for pair in ends) for n, o in late_pairs.items())
    kept = {r["clip_id"] for r in read(folder, "selection/x") if r["kept"]}
    assert all(len(kept & {f"c{n:05d}", f"c{o:05d}"}) <= 1 for n, o in copies.items())


def test_what_it_was_made_of_decides_whether_a_selection_stands(tmp_path: Path) -> None:
    folder, config = measured(tmp_path, planted(60)[0]), settings()
    compare(folder, config)
    assert selecting.select(str(folder), config, config.subsets[0]).endswith("of 60 clips kept")
    assert selecting.select(str(folder), config, config.subsets[0]) == "select: x: nothing new"
    for file in (folder / "index/centroids").iterdir():
        file.unlink()
    compare(folder, config)
    assert selecting.select(str(folder), config, config.subsets[0]) == "select: x: nothing new", "the same centroids again"
    (folder / "index/centroids/centroids.parquet").unlink()
    compare(folder, settings(clusters={"number": 2}))
    assert selecting.select(str(folder), config, config.subsets[0]).endswith("of 60 clips kept"), "decided anew"
    storage.write_table(str(folder / "produced/x/shard.parquet"), pa.table({"clip_id": ["c00000"]}))
    shutil.rmtree(folder / "index/centroids")
    with pytest.raises(ConfigError, match=r"(?s)concepts/ was made with other settings.*centroids: '\w+' -> None"):
        compare(folder, settings(clusters={"number": 2}))


def test_another_threshold_gives_what_a_fresh_run_gives(tmp_path: Path) -> None:
    found, _ = planted(75)
    fresh, changed = (measured(tmp_path / name, found) for name in ("fresh", "changed"))
    compare(changed, settings())
    other = settings(duplicates={"threshold": 0.98})
    compare(changed, other)
    compare(fresh, other)
    assert fingerprints(str(changed)) == fingerprints(str(fresh))


def test_other_settings_begin_anew_unless_shards_were_made(tmp_path: Path) -> None:
    found, copies = planted(40)
    folder = measured(tmp_path, found)
    compare(folder, settings())
    compare(folder, settings(duplicates={"threshold": 0.98}))
    assert not read(folder, "duplicates")
    compare(folder, settings(duplicates={"enabled": False}, clusters={"enabled": False}))
    assert {p.name for p in folder.iterdir()} == {"clips", "sources", "embeddings", "index"}
    compare(folder, settings())
    assert len(read(folder, "duplicates")) == len(copies)
    storage.write_table(str(folder / "produced/x/shard.parquet"), pa.table({"clip_id": ["c00000"]}))
    with pytest.raises(ConfigError, match=r"(?s)duplicates/ was made with other settings.*threshold: 0\.91 -> 0\.8"):
        Content(str(folder), settings(duplicates={"threshold": 0.8})).drop_stale()
    with pytest.raises(ConfigError, match=r"(?s)concepts/ was made with other settings.*number: None -> 3"):
        Content(str(folder), settings(clusters={"number": 3})).drop_stale()
    assert len(read(folder, "duplicates")) == len(copies), "a refusal removes nothing"


def test_clips_without_a_direction_are_nobodys_duplicate_and_of_no_concept(tmp_path: Path) -> None:
    nan = float("nan")
    rows: list[list[float] | None] = [[1.0, 0.0], [1.0, 0.0], None, [0.0, 0.0], [nan, 1.0], None]
    folder = measured(tmp_path, rows)
    compare(folder, settings())
    assert [r["clip_id"] for r in read(folder, "duplicates")] == ["c00001"]
    assert [r["clip_id"] for r in read(folder, "concepts")] == ["c00000", "c00001"]


@pytest.mark.parametrize("rows", [[], [None] * 12])
def test_nothing_to_compare_is_no_error(tmp_path: Path, rows: list[None]) -> None:
    folder = measured(tmp_path, rows)
    said = compare(folder, settings())
    assert not read(folder, "duplicates") and not read(folder, "clusters")
    assert said[1] == "clusters: none: no clip has a vector"
    line = selecting.select(str(folder), settings(), settings().subsets[0])
    wanted = "select: x: 12 of 12 clips kept; 12 of them have no vector: nothing is in their frames, or no list wanted them"
    assert line.startswith(wanted if rows else "select: x: nothing new")


def test_all_clips_may_be_copies_of_one(tmp_path: Path) -> None:
    folder = measured(tmp_path, np.repeat(planted(1)[0], 60, axis=0))
    compare(folder, settings(clusters={"number": 5}))
    assert len(read(folder, "duplicates")) == 59 and {r["duplicate_of"] for r in read(folder, "duplicates")} == {"c00000"}
    assert [c["size"] for c in read(folder, "clusters")] == [1]
    config = settings(subset={"resample": {"share": 0.5}})
    assert selecting.select(str(folder), config, config.subsets[0]) == "select: x: 1 of 60 clips kept"


def test_a_model_whose_width_changed_is_said(tmp_path: Path) -> None:
    wrong = "the vectors of unit-000001 have 2 numbers, those of unit-000000 have 32"
    folder = measured(tmp_path / "at once", planted(10)[0])
    measured(folder, [[1.0, 0.0]] * 10, start=10)
    with pytest.raises(ConfigError, match=wrong):
        compare(folder, settings())
    later = measured(tmp_path / "later", planted(10)[0])
    compare(later, settings())
    measured(later, [[1.0, 0.0]] * 10, start=10)
    with pytest.raises(ConfigError, match=wrong):
        compare(later, settings())


def test_a_unit_that_was_not_embedded_is_said(tmp_path: Path) -> None:
    folder = measured(tmp_path, planted(20)[0])
    (folder / "embeddings/layout/unit-000001.parquet").unlink()
    with pytest.raises(ConfigError, match=r"unit-000001\.parquet' is missing: run `reelset run` again"):
        compare(folder, settings())


def test_a_subset_that_is_balanced_needs_concepts() -> None:
    wanted = {"subset": {"resample": {"share": 0.5}}}
    content.check(settings(**wanted))
    for off in ({"clusters": {"enabled": False}}, {"embeddings": []}):
        with pytest.raises(ConfigError, match="subset 'x': resample needs concepts"):
            content.check(settings(**wanted, **off))


class Reads:
    """A model that reads texts: a sentence is the axis that its last word counts letters to."""

    def text(self, texts: list[str]) -> Any:
        return np.stack([np.eye(WIDTH, dtype=np.float32)[len(text.split()[-1])] for text in texts])


def test_clips_are_compared_with_what_people_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = measured(tmp_path, [*np.eye(WIDTH, dtype=np.float32)[:9], None])
    (tmp_path / "verbs.txt").write_text("sawing\n\n  running \n")
    model = {"name": "layout", "kind": "open_clip", "model": "m", "weights": "w"}
    config = settings(embeddings=[model], clusters={"people": True, "verbs": str(tmp_path / "verbs.txt")})
    monkeypatch.setattr(content.embedding, "OpenClip", Reads)
    monkeypatch.setattr(content.embedding, "load", lambda model, setting: Reads())
    compare(folder, config)
    said = {r["clip_id"]: r["people_similarity"] for r in read(folder, "concepts")}
    assert said == {f"c{n:05d}": float(n in (6, 7)) for n in range(9)}
    compare(folder, settings())
    assert {r["people_similarity"] for r in read(folder, "concepts")} == {None}


def test_people_by_sentences_need_a_model_that_reads_and_verbs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"open_clip; they are of layout \(layout\)"):
        content.check(settings(clusters={"people": True}))
    with pytest.raises(ConfigError, match=r"least_similarity needs clusters\.people"):
        content.check(settings(subset={"people": {"share": 0.5, "least_similarity": 0.2}}))
    (tmp_path / "verbs.txt").write_text("\n \n")
    for verbs in ("verbs.txt", "none.txt"):
        with pytest.raises(ConfigError, match=r"clusters\.verbs"):
            content.check(settings(clusters={"people": True, "verbs": str(tmp_path / verbs)}))
    assert len(clusters.sentences(ClusterConfig())) > 200
