import gc
import hashlib
import json
import signal
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path

import av
import pytest

from curation import storage
from curation.errors import ConfigError
from jobs import pipeline
from tests.promised import TABLES, fingerprints
from tests.small_runs import SUBSET, driver, settings

ROOT = Path(__file__).parent.parent.parent
OWN = ("costs", "events", "report", "run.json")
"""What a run says of itself, which differs from one run to the next."""


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "inline"
    assert pipeline.run(str(corpus / "manifest.csv"), str(run), settings()) == 0
    return run


def test_every_source_has_a_row_with_its_fate(whole: Path) -> None:
    rows = {r["path"]: r for r in storage.read_table(str(whole / "sources")).to_pylist()}
    assert {p: (r["status"], r["reason"] or r["error_code"]) for p, r in rows.items() if p != "g copy.mkv"} == {
        "a moving ü.mp4": ("ok", None),
        "b moving.mkv": ("ok", None),
        "c still.mp4": ("ok", None),
        "d short.mp4": ("rejected", "rule:duration_s >= 4"),
        "e image.png": ("ok", None),
        "f broken.mp4": ("error", "not_media"),
    }
    assert rows["g copy.mkv"]["exact_copy_of"] == rows["b moving.mkv"]["source_id"]
    assert rows["g copy.mkv"]["status"] == "rejected"
    assert rows["a moving ü.mp4"]["licence"] == "CC0" and rows["a moving ü.mp4"]["audio_codec"] == "aac"


def test_every_table_is_promised_or_its_own_story(whole: Path) -> None:
    """Nothing in a run folder escapes the comparisons of bytes because their list of tables was not kept."""
    assert {p.name for p in whole.iterdir()} == {*TABLES, *OWN}


def test_every_clip_has_a_reason(whole: Path) -> None:
    clips = {r["clip_id"]: r for r in storage.read_table(str(whole / "clips")).to_pylist()}
    chosen = storage.read_table(str(whole / "selection" / "tiny")).to_pylist()
    assert {r["clip_id"] for r in chosen} == set(clips)
    fate = {clips[r["clip_id"]]["path"]: (r["reason"], r["bucket"]) for r in chosen}
    assert fate == {
        "a moving ü.mp4": ("kept", "v256-16x9-f128"),
        "b moving.mkv": ("kept", "v256-4x3-f128"),
        "c still.mp4": ("rule:motion_static_frac < 0.9", None),
        "e image.png": ("kept", "i256-4x3"),
    }


def test_shards_hold_what_was_planned(whole: Path) -> None:
    found: Counter[str] = Counter()
    for tar in sorted((whole / "shards" / "tiny").rglob("*.tar")):
        index = storage.read_table(str(tar.parent)).to_pylist()
        with tarfile.open(tar) as members:
            names = members.getnames()
            assert names == [row["member"] for row in index]
            for row in index:
                data = members.extractfile(row["member"]).read()  # type: ignore[union-attr]
                assert data == tar.read_bytes()[row["offset"] : row["offset"] + row["size"]]
                assert hashlib.sha256(data).hexdigest() == row["sha256"]
                found[row["member"].rsplit(".", 1)[-1]] += 1
                if row["member"].endswith(".mp4"):
                    (whole / "x.mp4").write_bytes(data)
                    with av.open(str(whole / "x.mp4")) as film:
                        frames = [(f.width, f.height, f.format.name) for f in film.decode(video=0)]
                    assert frames == [(row["width"], row["height"], "yuv420p")] * row["frames"]
                if row["member"].endswith(".json"):
                    story = json.loads(data)
                    assert story["clip"]["clip_id"] == row["key"] and story["audio"] == "dropped"
                if row["member"].endswith(".txt"):
                    assert data.decode() in ("A texture drifts to the left.", "A still texture.")
    (whole / "x.mp4").unlink()
    assert found == {"mp4": 2, "webp": 1, "json": 3, "txt": 2}
    produced = storage.read_table(str(whole / "produced" / "tiny")).to_pylist()
    assert [r["status"] for r in produced] == ["ok"] * 3
    assert not (whole / "cuts").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its last tar open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_plain_webdataset_reads_the_shards(whole: Path) -> None:
    import webdataset as wds

    shards = [str(p) for p in sorted((whole / "shards" / "tiny").rglob("*.tar"))]
    samples = list(wds.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 3
    assert all(json.loads(s["json"])["clip"]["clip_id"] == s["__key__"] for s in samples)
    gc.collect()


def test_running_again_does_nothing_and_changes_nothing(whole: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprints(str(whole))
    assert pipeline.run(str(corpus / "manifest.csv"), str(whole), settings()) == 0
    assert fingerprints(str(whole)) == before
    said = capsys.readouterr().err
    assert "analyze:" not in said and "nothing new" in said


def test_a_lost_shard_is_made_again_with_the_same_bytes(whole: Path, corpus: Path) -> None:
    before = fingerprints(str(whole))
    shard = next((whole / "shards").rglob("*.tar"))
    shard.unlink()
    shard.with_suffix(".parquet").unlink()
    assert pipeline.run(str(corpus / "manifest.csv"), str(whole), settings()) == 0
    assert fingerprints(str(whole)) == before


def test_other_settings_are_refused_before_work(whole: Path, corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"clips\.min_s: 4\.0 -> 2\.0"):
        pipeline.run(str(corpus / "manifest.csv"), str(whole), settings(clips={"min_s": 2}))
    with pytest.raises(ConfigError, match=r"aesthetic > 4.*aesthetic\.weights"):
        strict = {**SUBSET, "clip_rules": ["aesthetic > 4"]}
        pipeline.run(str(corpus / "manifest.csv"), str(whole.parent / "new"), settings(subsets=[strict]))
    assert not (whole.parent / "new").exists()


def test_other_rules_make_another_selection_beside_the_first(whole: Path) -> None:
    rules = whole.parent / "fast.yaml"
    rules.write_text("clip_rules: ['motion_mv > 1000']\nimage_rules: ['width > 9']\n")
    before = fingerprints(str(whole))
    assert pipeline.again(str(whole), None, [], [str(rules)], ("select",)) == 0
    reasons = Counter(r["reason"] for r in storage.read_table(str(whole / "selection" / "fast")).to_pylist())
    assert reasons == {"rule:motion_mv > 1000": 3, "kept": 1}
    assert before.items() <= fingerprints(str(whole)).items()
    same_name = whole.parent / "tiny.yaml"
    same_name.write_text("clip_rules: ['motion_mv > 1000']\n")
    with pytest.raises(ConfigError, match="shards of 'tiny' were made by another selection"):
        pipeline.again(str(whole), None, [], [str(same_name)], ("select",))
    storage.remove(str(whole / "selection" / "fast"))


def test_later_sources_are_new_units_and_leave_the_old_bytes(corpus: Path, tmp_path: Path) -> None:
    names = ["a moving ü.mp4", "b moving.mkv"]
    (tmp_path / "in").mkdir()
    for name in names[:1]:
        (tmp_path / "in" / name).write_bytes((corpus / name).read_bytes())
    run = tmp_path / "run"
    pipeline.run(str(tmp_path / "in"), str(run), settings())
    before = fingerprints(str(run))
    (tmp_path / "in" / names[1]).write_bytes((corpus / names[1]).read_bytes())
    pipeline.run(str(tmp_path / "in"), str(run), settings())
    after = fingerprints(str(run))
    counted = "/clusters/clusters.parquet"  # of the whole run
    assert {name: made for name, made in before.items() if name != counted}.items() <= after.items()
    assert len(list((run / "shards").rglob("*.tar"))) == 2


def test_a_limit_takes_the_first_and_estimates_the_whole(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.run(str(corpus), str(tmp_path / "run"), settings(), limit=1) == 0
    assert storage.read_table(str(tmp_path / "run" / "sources"))["path"].to_pylist() == ["a moving ü.mp4"]
    assert "estimate for all 7 sources, from 1:" in capsys.readouterr().err


def test_too_many_failures_are_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp4").write_bytes(b"nonsense")
    assert pipeline.run(str(tmp_path / "in"), str(tmp_path / "run"), settings(error_budget=0.5)) == 3


def test_ray_gives_the_same_bytes(whole: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "ray"
    command = driver(corpus / "manifest.csv", run, "ray")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert fingerprints(str(run)) == fingerprints(str(whole))


def test_a_killed_driver_costs_nothing_but_time(whole: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = driver(corpus / "manifest.csv", run)
    for milestone in ("units", "clips", "sources", "cuts"):
        killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while killed.poll() is None and not storage.names(str(run / milestone)) and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert pipeline.run(str(corpus / "manifest.csv"), str(run), settings()) == 0
    assert fingerprints(str(run)) == fingerprints(str(whole))
    assert not list(run.rglob("_*")) and not (run / "cuts").exists()
    assert (run / "run.json").exists()


def test_other_encoding_is_refused_where_shards_exist(whole: Path, corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"encode\.crf: 18 -> 30"):
        pipeline.run(str(corpus / "manifest.csv"), str(whole), settings(encode={"preset": "ultrafast", "crf": 30}))


def test_other_duplicates_are_refused_before_any_work(whole: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprints(str(whole))
    with pytest.raises(ConfigError, match=r"(?s)duplicates/ was made with other settings.*threshold: 0\.91 -> 0\.5"):
        pipeline.run(str(corpus), str(whole), settings(duplicates={"threshold": 0.5}))
    assert fingerprints(str(whole)) == before and "input:" not in capsys.readouterr().err


def test_a_refused_run_is_left_as_it_was(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pipeline.run(str(corpus / "manifest.csv"), str(run), settings(), parts=("analyze",)) == 0
    (run / "cuts").mkdir()
    (run / "cuts" / "unit-000000.tar").write_bytes(b"dear")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "events" not in p.parts}
    with pytest.raises(ConfigError, match=r"clips\.min_s"):
        pipeline.run(str(corpus / "manifest.csv"), str(run), settings(clips={"min_s": 2.0}, encode={"crf": 30}))
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "events" not in p.parts} == before


def test_an_object_store_holds_the_run_and_the_input(corpus: Path, whole: Path) -> None:
    """fsspec's memory file system stands for one here: no rename, no append, listing by prefix."""
    for file in corpus.iterdir():
        storage.write_bytes(f"memory://films/in/{file.name}", file.read_bytes())
    for _ in range(2):
        assert pipeline.run("memory://films/in/manifest.csv", "memory://films/run", settings()) == 0
        assert not storage.exists("memory://films/run/cuts")
    for tar in (whole / "shards").rglob("*.tar"):
        assert storage.read_bytes(f"memory://films/run/{tar.relative_to(whole)}") == tar.read_bytes()
    rows = storage.read_table("memory://films/run/sources").to_pylist()
    assert [r["path"] for r in rows] == [r["path"] for r in storage.read_table(str(whole / "sources")).to_pylist()]
    storage.remove("memory://films")
