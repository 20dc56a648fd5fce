"""Pack: shards that plain readers read, from byte ranges, whole or not at all, the same bytes after any death."""

import gc
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bucketing.buckets import choose
from bucketing.cut import Cut, EncodeConfig, Made, Shown, cut_image, cut_video
from bucketing.pack import Bound, Described, cuts, pack_shard, write_cuts
from bucketing.shard_format import read_index, read_member
from curation import storage
from curation.errors import StageError
from curation.tables import PRODUCED
from tests.bucketing.samples import LIMITS, marked, number, pictures, planned
from tests.media_samples import make_video

SHARD = "train/v256-16x9-f128/shard-000000"
FACTS = {"frames": 128, "fps": 25.0, "width": 336, "height": 192}


def fake_cuts(folder: Path, unit: str, count: int = 3) -> Iterator[tuple[Made, dict[str, Any]]]:
    """Cuts whose bytes name them; the last one failed."""
    folder.mkdir(exist_ok=True)
    for n in range(count):
        file = folder / f"{unit}_{n}.mp4"
        file.write_bytes(f"bytes of {unit} {n} ".encode() * 100 * (n + 1))
        yield Made(f"{unit}_{n}-256", str(file), shown=Shown(n, n + 127, (0, 0, 336, 192), 0.01)), FACTS
    yield Made(f"{unit}_bad-256", None, "frames_missing", "a hole"), FACTS


def fake_run(run: str, folder: Path) -> list[dict[str, str]]:
    """A run with the cuts of two units; returns the samples of a plan over both."""
    for unit in ("u1", "u2"):
        write_cuts(run, unit, fake_cuts(folder, unit))
    wanted = [("u2", "u2_1"), ("u1", "u1_0"), ("u1", "u1_bad"), ("u2", "u2_0"), ("u1", "u1_2")]
    return [{"clip_id": clip, "unit": unit, "key": f"{clip}-256"} for unit, clip in wanted]


def describe(unit: str, clip_id: str, fps: float | None) -> Described:
    return Described({"clip": {"clip_id": clip_id, "motion_mv": None}}, f"caption of {clip_id}" if clip_id == "u1_0" else None)


def files_of(run: Path) -> dict[str, str]:
    """Finished files below a folder and their hashes."""
    found = (p for p in run.rglob("*") if p.is_file())
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found if not p.name.startswith("_")}


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_shard_holds_the_plan_in_its_order(tmp_path: Path, where: str) -> None:
    run = str(tmp_path / "run") if where == "disk" else f"memory://{tmp_path.name}/run"
    samples = fake_run(run, tmp_path / "made")
    assert not list((tmp_path / "made").iterdir()), "a cut's file goes once it is in the tar"
    outcome = pack_shard(run, "everyday", SHARD, samples, describe)
    assert outcome == {"subset": "everyday", "shard": SHARD, "samples": 4, "failed": 1}

    data = storage.read_bytes(f"{run}/shards/everyday/{SHARD}.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
    wanted = ["u2_1.mp4 u2_1.json", "u1_0.mp4 u1_0.json u1_0.txt", "u2_0.mp4 u2_0.json", "u1_2.mp4 u1_2.json"]
    assert names == " ".join(wanted).split()
    index = read_index(io.BytesIO(storage.read_bytes(f"{run}/shards/everyday/{SHARD}.parquet"))).to_pylist()
    assert [row["member"] for row in index] == names
    content = {row["member"]: read_member(io.BytesIO(data), row) for row in index}
    assert content["u2_1.mp4"] == b"bytes of u2 1 " * 200
    assert content["u1_0.txt"] == b"caption of u1_0"
    story = json.loads(content["u1_2.json"])
    assert story["clip"] == {"clip_id": "u1_2", "motion_mv": None} and story["audio"] == "dropped"
    assert story["sample"] == {
        **FACTS,
        "sha256": hashlib.sha256(content["u1_2.mp4"]).hexdigest(),
        "first_frame": 2,
        "last_frame": 129,
        "crop": [0, 0, 336, 192],
        "off_s": 0.01,
    }


def test_what_could_not_be_made_is_said(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    samples = fake_run(run, tmp_path / "made")
    samples.append({"clip_id": "u1_7", "unit": "u1", "key": "u1_7-256"})
    pack_shard(run, "everyday", SHARD, samples, describe)
    table = storage.read_table(f"{run}/produced/everyday", PRODUCED)
    rows = {row["clip_id"]: row for row in table.to_pylist()}
    assert [row["clip_id"] for row in table.to_pylist()] == [s["clip_id"] for s in samples]
    bad, lost, good = rows["u1_bad"], rows["u1_7"], rows["u1_2"]
    assert (bad["status"], bad["error_code"], bad["error_message"]) == ("error", "frames_missing", "a hole")
    assert (lost["status"], lost["error_code"]) == ("error", "stage_failed")
    assert (good["status"], good["shard"], good["bucket"], good["frames"]) == ("ok", SHARD, "v256-16x9-f128", 128)
    tar = Path(f"{run}/shards/everyday/{SHARD}.tar").read_bytes()
    assert hashlib.sha256(tar[good["offset"] : good["offset"] + good["bytes"]]).hexdigest() == good["sha256"]


def test_a_caption_of_other_pictures_is_refused(tmp_path: Path) -> None:
    """Each of the four ways in which a caption may not be this clip's, and one that is."""
    run = str(tmp_path / "run")
    samples = fake_run(run, tmp_path / "made")
    sha256 = {row["key"]: row["sha256"] for unit in ("u1", "u2") for row in cuts(run, unit).values()}
    bounds = {
        "u2_1": Bound("u2_0-256", sha256["u2_0-256"], 0, 128),  # another clip's, whose frames do not reach as far
        "u1_0": Bound("u1_0-256", sha256["u1_2-256"], 0, 128),  # other bytes
        "u2_0": Bound("u2_9-256", sha256["u2_0-256"], 0, 128),  # a cut that is not there
        "u1_2": Bound("u1_2-256", sha256["u1_2-256"], 2, 130),
    }

    def bound(unit: str, clip_id: str, fps: float | None) -> Described:
        return Described({}, "a caption", bounds[clip_id])

    assert pack_shard(run, "everyday", SHARD, samples, bound)["samples"] == 1
    rows = {row["clip_id"]: row for row in storage.read_table(f"{run}/produced/everyday", PRODUCED).to_pylist()}
    assert {c: rows[c]["error_code"] for c in bounds} == dict.fromkeys(bounds, "caption_mismatch") | {"u1_2": None}
    assert "u2_1-256 shows 1 to 128" in rows["u2_1"]["error_message"]
    with tarfile.open(f"{run}/shards/everyday/{SHARD}.tar") as tar:
        assert tar.getnames() == ["u1_2.mp4", "u1_2.json", "u1_2.txt"], "nothing of a refused sample is written"


def test_packing_again_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    samples = fake_run(str(run), tmp_path / "made")
    first = pack_shard(str(run), "everyday", SHARD, samples, describe)
    before = files_of(run)
    stamp = (run / f"shards/everyday/{SHARD}.tar").stat().st_mtime_ns
    assert pack_shard(str(run), "everyday", SHARD, samples, describe) == first
    assert (run / f"shards/everyday/{SHARD}.tar").stat().st_mtime_ns == stamp
    (run / f"shards/everyday/{SHARD}.parquet").unlink()
    assert pack_shard(str(run), "everyday", SHARD, samples, describe) == first
    assert files_of(run) == before


KILLED = """
import os, signal, sys
from bucketing import pack
from tests.bucketing.test_pack import SHARD, describe, fake_run
run, folder, after = sys.argv[1:]
from pathlib import Path
samples = fake_run(run, Path(folder))
def deadly(unit, clip_id, fps):
    if after == "sample" and clip_id == "u2_0":
        os.kill(os.getpid(), signal.SIGKILL)
    return describe(unit, clip_id, fps)
write = pack.storage.write_table
def write_table(url, table):
    if after == "produced" and "/shards/" in url or after == "tar" and "/produced/" in url:
        os.kill(os.getpid(), signal.SIGKILL)
    write(url, table)
pack.storage.write_table = write_table
pack.pack_shard(run, "everyday", SHARD, samples, deadly)
"""


@pytest.mark.parametrize("after", ["sample", "tar", "produced"])
def test_a_killed_pack_leaves_no_shard_and_the_next_one_the_same_bytes(tmp_path: Path, after: str) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    done = subprocess.run([sys.executable, "-c", KILLED, str(run), str(tmp_path / "made"), after], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not list(run.rglob("shard-*.parquet")), "an index is the commit, and must not be there"
    assert after != "sample" or not list(run.rglob("shard-*"))
    samples = fake_run(str(run), tmp_path / "made")
    pack_shard(str(run), "everyday", SHARD, samples, describe)
    pack_shard(str(whole), "everyday", SHARD, fake_run(str(whole), tmp_path / "made"), describe)
    assert files_of(run) == files_of(whole)


def test_cuts_are_committed_index_last_and_an_old_index_goes_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cuts(str(run), "u1") == {}
    rows = write_cuts(str(run), "u1", fake_cuts(tmp_path / "made", "u1"))
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "error"]
    assert set(cuts(str(run), "u1")) == {"u1_0-256", "u1_1-256", "u1_2-256", "u1_bad-256"}

    def breaking() -> Iterator[tuple[Made, dict[str, Any]]]:
        yield from fake_cuts(tmp_path / "made", "u1", 1)
        raise RuntimeError("the unit's third source")

    with pytest.raises(RuntimeError):
        write_cuts(str(run), "u1", breaking())
    assert cuts(str(run), "u1") == {}


def test_a_tar_that_is_not_the_indexs_own_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    samples = fake_run(str(run), tmp_path / "made")
    tar = run / "cuts" / "u2.tar"
    tar.write_bytes(tar.read_bytes().replace(b"u2 1", b"u2 9"))
    with pytest.raises(StageError, match=r"u2_1-256\.mp4"):
        pack_shard(str(run), "everyday", SHARD, samples, describe)
    assert not list(run.rglob("shard-*"))


def test_plain_webdataset_reads_videos_and_images(tmp_path: Path) -> None:
    """From sources to what a trainer sees: every frame where the plan wants it."""
    import webdataset
    from PIL import Image

    run = str(tmp_path / "run")
    video = make_video(tmp_path / "v.mp4", marked(336, 192), 150, fps=30)
    Image.fromarray(marked(400, 400)(9)).save(tmp_path / "i.png")
    film, turn = planned(video)
    picture = Cut("i-256", 0, 1, np.zeros(1), 0.0, choose({"kind": "image", "width": 400, "height": 400}, 256))
    encode = EncodeConfig(preset="ultrafast")
    (tmp_path / "out").mkdir()
    made = [
        *cut_video(str(video), [film], turn, encode, LIMITS, str(tmp_path / "out")),
        *cut_image(str(tmp_path / "i.png"), [picture], encode, LIMITS, str(tmp_path / "out")),
    ]
    facts = [{**FACTS, "fps": 25.6}, {"frames": 1, "fps": None, "width": 256, "height": 256}]
    write_cuts(run, "u1", zip(made, facts, strict=True))
    pack_shard(run, "s", SHARD, [{"clip_id": "v", "unit": "u1", "key": film.key}], describe)
    images = "train/i256-1x1/shard-000000"
    pack_shard(run, "s", images, [{"clip_id": "i", "unit": "u1", "key": "i-256"}], describe)

    urls = [f"{run}/shards/s/{shard}.tar" for shard in (SHARD, images)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        one, other = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    assert (one["__key__"], other["__key__"]) == ("v", "i")
    (tmp_path / "played.mp4").write_bytes(one["mp4"])
    played = [number(p) for p in pictures(tmp_path / "played.mp4")]
    shown = json.loads(one["json"])["sample"]
    assert len(played) == 128 and np.diff(played).min() >= 1
    assert (played[0], played[-1]) == (shown["first_frame"], shown["last_frame"])
    with Image.open(io.BytesIO(other["webp"])) as image:
        assert image.size == (256, 256) and number(np.asarray(image.convert("RGB"))) == 9
    row = pq.read_table(f"{run}/produced/s/train--i256-1x1--shard-000000.parquet").to_pylist()[0]
    assert (row["status"], row["frames"], row["fps"]) == ("ok", 1, None)
