"""The demo's corpus is what its truth says, and the comparison sees what is wrong."""

import csv
import json
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.storage import rows_table, write_table
from curation.tables import CLIPS, PRODUCED, SELECTION, SOURCES
from jobs.demo import Row, compare, render
from jobs.demo_corpus import derivations, make_corpus, timeline, write_film
from jobs.demo_films import Encoding, Film, Join, Truth, films
from jobs.demo_scenes import WORLDS, Camera, Shot
from jobs.demo_scenes import render as shot_frames

SOME = {
    "odd/one_frame.mp4",
    "bad/tiny_160x120.mp4",
    "odd/same bytes again.mp4",
    "broken/no_index.mp4",
    "broken/empty.mp4",
    "broken/sound_only.mp4",
    "images/reef.webp",
    "images/thumbnail.png",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Truth]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, {t.path: t for t in make_corpus(folder, only=SOME)}


def opened(path: Path) -> tuple[list[Any], Any]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return list(container.decode(stream)), stream.sample_aspect_ratio


def test_what_was_asked_for_is_made_and_what_it_needs(corpus: tuple[Path, dict[str, Truth]]) -> None:
    folder, truths = corpus
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {*SOME, "good/pan right.mp4", "manifest.csv", "truth.json"}
    assert set(truths) == files - {"manifest.csv", "truth.json"}
    assert (folder / "odd/same bytes again.mp4").read_bytes() == (folder / "good/pan right.mp4").read_bytes()
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows] == sorted(truths)
    assert all(r["caption"] and r["licence"] for r in rows)
    assert [t["path"] for t in json.loads((folder / "truth.json").read_text())] == sorted(truths)


def small_film(name: str, *shots: Shot, **more: Any) -> Film:
    return Film(Truth(name, "a small film"), shots or (Shot("meadow", 20, Camera(pan=3.0)),), **{"size": (320, 192), **more})


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    import cv2

    threads = cv2.getNumThreads()
    made = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_film(tmp_path, small_film(f"{name}.mp4", Shot("reef", 12, Camera(sway_px=9), seed=seed)))
        made[name] = (tmp_path / f"{name}.mp4").read_bytes()
    cv2.setNumThreads(threads)
    assert made["a"] == made["b"] != made["c"]
    assert [f.shots[0].seed for f in films(0)] == [f.shots[0].seed for f in films(0)]
    assert len({f.shots[0].seed for f in (*films(0), *films(1))}) == 2 * len(films(0))


@pytest.mark.parametrize(
    ("film", "shape"),
    [
        (small_film("plain.mp4"), (320, 192)),
        (small_film("turned.mp4", encoding=Encoding(rotated=True)), (320, 192)),
        (small_film("wide.avi", encoding=Encoding(codec="mpeg4", pixel_aspect=Fraction(32, 27))), (379, 192)),
        (small_film("odd.mkv", size=(321, 193), encoding=Encoding(pixels="yuv444p")), (321, 193)),
        (small_film("ten.mkv", encoding=Encoding(pixels="yuv420p10le")), (320, 192)),
        (small_film("uneven.mp4", encoding=Encoding(fps=30, uneven=True)), (320, 192)),
    ],
    ids=lambda v: v.truth.path if isinstance(v, Film) else "",
)
def test_an_encoding_is_what_it_says(tmp_path: Path, film: Film, shape: tuple[int, int]) -> None:
    truth = write_film(tmp_path, film)
    frames, aspect = opened(tmp_path / film.truth.path)
    assert len(frames) == truth.frames == 20
    turned = abs(frames[0].rotation) == 90
    assert turned == film.encoding.rotated
    width, height = round(frames[0].width * (aspect or 1)), frames[0].height
    assert ((height, width) if turned else (width, height)) == shape
    assert frames[0].format.name == film.encoding.pixels
    # PyAV gives the anticlockwise turn that brings the stored picture upright
    upright = np.rot90(frames[0].to_ndarray(format="rgb24"), frames[0].rotation // 90)
    assert upright[:60, :, 2].mean() > upright[-40:, :, 2].mean() + 40, "blue sky above green hills"
    steps = {round(float(s) * film.encoding.fps) for s in np.diff([f.time for f in frames])}
    assert steps == ({1, 2} if film.encoding.uneven else {1})


def test_transitions_stand_where_the_pictures_change(tmp_path: Path) -> None:
    shots = [Shot(world, n, Camera(pan=1.0), seed=2) for world, n in (("meadow", 20), ("dusk", 30), ("snow", 40), ("reef", 30))]
    truth = write_film(tmp_path, small_film("a.mkv", *shots, joins=(Join(), Join("fade", 8), Join("dissolve", 10))))
    assert truth.cut_frames == (20,)
    assert truth.gradual == ((42, 58, "fade"), (80, 90, "dissolve"))
    small = np.stack([f.reformat(width=48, height=27, format="rgb24").to_ndarray() for f in opened(tmp_path / "a.mkv")[0]])
    change = np.abs(np.diff(small.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert np.argmax(change) + 1 == 20
    assert small[49:51].mean() < 4 < 20 < small[40].mean(), "black in the middle of the fade"
    before, after = (np.abs(small[t].astype(float) - small[85]).mean() for t in (78, 91))
    assert before == pytest.approx(after, rel=0.4) and before > 8, "half of either in the middle of the dissolve"


@pytest.mark.parametrize("name", ["broken/no_index.mp4", "broken/empty.mp4"])
def test_broken_files_do_not_open(corpus: tuple[Path, dict[str, Truth]], name: str) -> None:
    import av

    with pytest.raises(av.error.InvalidDataError):
        av.open(str(corpus[0] / name))


def test_images_and_sound(corpus: tuple[Path, dict[str, Truth]]) -> None:
    import av
    from PIL import Image

    for name in ("images/reef.webp", "images/thumbnail.png"):
        with Image.open(corpus[0] / name) as image:
            assert image.size == corpus[1][name].size
    with av.open(str(corpus[0] / "broken/sound_only.mp4")) as container:
        assert [s.type for s in container.streams] == ["audio"]


def test_a_timeline_follows_from_shots_and_joins() -> None:
    shots = tuple(Shot("reef", n) for n in (50, 40, 30, 20))
    film = Film(Truth("a", "b"), shots, (Join("dissolve", 10), Join("fade", 5), Join()))
    assert timeline(film) == ((110,), ((40, 50, "dissolve"), (75, 85, "fade")))


def test_kept_shots_are_long_enough_for_a_bucket_and_every_path_is_named_once() -> None:
    catalogue = films(0)
    paths = [f.truth.path for f in catalogue] + [d.truth.path for d in derivations()]
    assert len(set(paths)) == len(paths) >= 30
    for film in catalogue:
        if film.truth.verdict == ("kept",):
            assert sum(s.frames >= 150 for s in film.shots) == film.truth.kept_clips or film.truth.kept_clips == 3


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_worlds_move_and_have_detail(world: str) -> None:
    frames = list(shot_frames(Shot(world, 3, Camera(pan=3.0), seed=1), 320, 192))
    assert all(f.shape == (192, 320, 3) and f.dtype == np.uint8 for f in frames)
    assert 25 < frames[0].mean() < 235
    assert np.abs(frames[1].astype(int) - frames[0]).mean() > 1
    still = list(shot_frames(Shot(world, 2, freeze=True), 320, 192))
    assert np.array_equal(still[0], still[1]) and still[0] is not still[1]


# ---- the comparison -------------------------------------------------------------------------------------------------

CUT = Truth("a.mp4", "cuts", frames=300, size=(640, 480), cut_frames=(100,), gradual=((200, 220, "dissolve"),))
KEPT = replace(CUT, bars=(0, 0, 0, 0), has_text=False, static=False, verdict=("kept",), kept_clips=2)


def run_folder(folder: Path, reasons: tuple[str, str] = ("kept", "kept"), **source: Any) -> Path:
    """A run over one source with two clips."""
    row = {"source_id": "s", "path": "a.mp4", "status": "ok", "frames": 300, "width": 640, "height": 480}
    row |= {"cut_frames": [101], "gradual": [{"start": 195, "end": 222, "kind": "fade"}]}
    spans = [("c0", 0, 100), ("c1", 220, 300)]
    clips = [{"clip_id": n, "path": "a.mp4", "status": "ok", "start_frame": a, "end_frame": b} for n, a, b in spans]
    clips = [{**c, **{f"border_{s}_px": 1.0 for s in ("top", "bottom", "left", "right")}} for c in clips]
    clips = [{**c, "text_score": 0.1, "motion_static_frac": 0.0} for c in clips]
    picked = [{"clip_id": n, "kept": r == "kept", "reason": r} for n, r in zip(("c0", "c1"), reasons, strict=True)]
    made = [{"clip_id": p["clip_id"], "status": "ok"} for p in picked if p["kept"]]
    for name, rows, schema in (
        ("sources", [row | source], SOURCES),
        ("clips", clips, CLIPS),
        ("selection/everyday", picked, SELECTION),
        ("produced/everyday", made, PRODUCED),
    ):
        table: pa.Table = rows_table(rows, schema)
        write_table(str(folder / name / "unit-000000.parquet"), table)
    return folder


def wrong(rows: list[Row]) -> set[str]:
    return {row.fact for row in rows if not row.ok}


def test_what_agrees_is_right(tmp_path: Path) -> None:
    rows = compare(run_folder(tmp_path), [KEPT])
    facts = ["status", "size", "frames", "cuts", "gradual", "clips across", "bars", "text", "static", "verdict"]
    assert [r.fact for r in rows] == facts
    assert wrong(rows) == set()


@pytest.mark.parametrize(
    ("found", "facts"),
    [
        ({"status": "error", "error_code": "timeout"}, {"status"}),
        ({"width": 480, "height": 640}, {"size"}),
        ({"frames": 299}, {"frames"}),
        ({"cut_frames": [104]}, {"cuts"}),
        ({"cut_frames": []}, {"cuts"}),
        ({"cut_frames": [100, 150]}, {"cuts"}),
        ({"cut_frames": [100, 210]}, set()),
        ({"gradual": []}, {"gradual"}),
        (
            {"gradual": [{"start": 200, "end": 220, "kind": "fade"}, {"start": 20, "end": 30, "kind": "fade"}]},
            {"gradual"},
        ),
    ],
)
def test_what_disagrees_is_wrong(tmp_path: Path, found: dict[str, Any], facts: set[str]) -> None:
    assert wrong(compare(run_folder(tmp_path, **found), [KEPT])) == facts


def test_pictures_and_verdicts(tmp_path: Path) -> None:
    rule = "rule:text_score < 0.6"
    run = run_folder(tmp_path, ("kept", rule))
    assert wrong(compare(run, [replace(CUT, bars=(0, 0, 6, 6))])) == {"bars"}
    assert wrong(compare(run, [replace(CUT, has_text=True)])) == {"text"}
    assert wrong(compare(run, [KEPT])) == {"verdict"}
    assert wrong(compare(run, [replace(KEPT, kept_clips=1)])) == set()
    dropped = replace(CUT, verdict=("text_score", "no_clip"))
    assert wrong(compare(run, [dropped])) == {"verdict"}
    assert wrong(compare(run_folder(tmp_path / "b", (rule, rule)), [dropped])) == set()
    assert wrong(compare(run_folder(tmp_path / "c", (rule, "rule:motion_mv > 0.5")), [dropped])) == {"verdict"}


def test_a_clip_across_a_cut_is_wrong(tmp_path: Path) -> None:
    assert wrong(compare(run_folder(tmp_path, cut_frames=[50]), [replace(CUT, cut_frames=(50,))])) == {"clips across"}


def test_a_file_without_a_row_is_wrong_and_a_known_limit_is_marked(tmp_path: Path) -> None:
    run = run_folder(tmp_path, gradual=[])
    rows = compare(run, [replace(CUT, known_limits=("gradual",)), Truth("lost.mp4", "lost")])
    assert [(r.path, r.fact, r.known_limit) for r in rows if not r.ok] == [
        ("a.mp4", "gradual", True),
        ("lost.mp4", "one row", False),
    ]


def test_a_copy_names_its_original(tmp_path: Path) -> None:
    run = run_folder(tmp_path, status="rejected", reason="exact_copy:s", exact_copy_of="s")
    copy = Truth("a.mp4", "copy", ("rejected",), exact_copy_of="a.mp4")
    assert wrong(compare(run, [copy])) == set()
    assert wrong(compare(run, [replace(copy, exact_copy_of="b.mp4")])) == {"exact copy of"}


def test_the_table_marks_every_fact(tmp_path: Path) -> None:
    from rich.console import Console

    rows = compare(run_folder(tmp_path, frames=299), [KEPT])
    console = Console(width=160, record=True, file=StringIO())
    console.print(render(rows))
    text = console.export_text()
    assert text.count("✓") == len(rows) - 1 and text.count("✗") == 1
    assert text.count("a.mp4") == 1
