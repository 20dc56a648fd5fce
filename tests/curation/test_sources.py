import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import storage
from curation.errors import ConfigError
from curation.media import MediaLimits
from curation.probe import Probe
from curation.sources import UnitConfig, content_hash, list_input, plan_units, source_id
from curation.stage import Source


def put(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_a_folder_is_listed_recursively_and_others_are_counted(tmp_path: Path) -> None:
    put(tmp_path, b_mp4=b"1", sub__a_JPG=b"22", notes_md=b"x", sub__deep__c_mkv=b"3")
    listing = list_input(str(tmp_path))
    assert [(s.path, s.bytes, s.kind) for s in listing.sources] == [
        ("b.mp4", 1, "video"),
        ("sub/a.JPG", 2, "image"),
        ("sub/deep/c.mkv", 1, "video"),
    ]
    assert listing.skipped == {".md": 1}


def test_names_that_are_no_utf8_travel(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/bad\xff name.mp4"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (source,) = list_input(str(tmp_path)).sources
    assert source.path == "bad\\xff name.mp4"
    with storage.local_copy(source.url) as path:
        assert path.read_bytes() == b"x"


def test_links_and_pipes_are_rows_with_a_code(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"s")
    (corpus / "inside.mp4").write_bytes(b"i")
    (corpus / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (corpus / "dead.mp4").symlink_to(corpus / "nowhere.mp4")
    (corpus / "ok.mp4").symlink_to(corpus / "inside.mp4")
    (corpus / "circle.mp4").symlink_to(corpus / "circle.mp4")
    os.mkfifo(corpus / "pipe.mp4")
    found = {s.path: (s.error_code, s.error_message) for s in list_input(str(corpus)).sources}
    assert found["inside.mp4"] == found["ok.mp4"] == (None, None)
    assert found["out.mp4"][0] == "unreadable" and "leaves the corpus" in str(found["out.mp4"][1])
    assert found["dead.mp4"][0] == "missing" and found["circle.mp4"][0] == "unreadable"
    assert found["pipe.mp4"] == ("unreadable", "not a regular file")


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_manifests(tmp_path: Path, kind: str) -> None:
    put(tmp_path, a_mp4=b"1", sub__b_mp4=b"22")
    manifest = tmp_path / f"list.{kind}"
    if kind == "txt":
        manifest.write_text("# comment\na.mp4\nsub/b.mp4\ngone.mp4\n")
    elif kind == "csv":
        manifest.write_text('path,caption,status\na.mp4,"two, words",x\nsub/b.mp4,,y\ngone.mp4,z,z\n')
    else:
        rows = {"url": ["a.mp4", "sub/b.mp4", "gone.mp4"], "caption": ["two, words", None, "z"], "score": [1, 2, 3]}
        pq.write_table(pa.table(rows), manifest)
    found = {s.path: s for s in list_input(str(manifest)).sources}
    assert [(p, s.bytes, s.error_code) for p, s in found.items()] == [
        ("a.mp4", 1, None),
        ("gone.mp4", None, "missing"),
        ("sub/b.mp4", 2, None),
    ]
    if kind == "csv":
        assert found["a.mp4"].extra == {"caption": "two, words", "manifest_status": "x"}
    if kind == "parquet":
        assert found["a.mp4"].extra == {"caption": "two, words", "score": "1"}


@pytest.mark.parametrize("text,why", [("name,caption\na.mp4,x\n", "needs a column"), ("path\n", "is empty")])
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ConfigError, match=why):
        list_input(str(tmp_path / "m.csv"))


def test_nothing_to_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        list_input(str(tmp_path / "nowhere"))
    put(tmp_path, notes_md=b"x")
    with pytest.raises(ConfigError, match="no video or image"):
        list_input(str(tmp_path))


def test_units_are_stable_and_additions_are_new_units(tmp_path: Path) -> None:
    corpus, run = tmp_path / "in", str(tmp_path / "run")
    put(corpus, b_mp4=b"b", c_mp4=b"cc", d_mp4=b"ddd")
    assert plan_units(run, list_input(str(corpus)), UnitConfig(size=2)) == ["unit-000000", "unit-000001"]
    before = [p.read_bytes() for p in sorted((tmp_path / "run" / "units").iterdir())]
    put(corpus, a_mp4=b"aaaa")
    assert plan_units(run, list_input(str(corpus)), UnitConfig(size=2))[-1] == "unit-000002"
    after = [p.read_bytes() for p in sorted((tmp_path / "run" / "units").iterdir())]
    assert after[:2] == before
    assert storage.read_table(f"{run}/units")["path"].to_pylist() == ["b.mp4", "c.mp4", "d.mp4", "a.mp4"]


def test_exact_copies_name_their_original(tmp_path: Path) -> None:
    corpus, run = tmp_path / "in", str(tmp_path / "run")
    put(corpus, a_mp4=b"same", b_mp4=b"same", c_mp4=b"diff")
    plan_units(run, list_input(str(corpus)), UnitConfig(size=8))
    original = source_id("a.mp4", 4, content_hash(corpus / "a.mp4"))
    assert storage.read_table(f"{run}/units")["exact_copy_of"].to_pylist() == [None, original, None]
    put(corpus, later_mp4=b"diff")
    plan_units(run, list_input(str(corpus)), UnitConfig(size=8))
    copied = storage.read_table(f"{run}/units")["exact_copy_of"].to_pylist()[-1]
    assert copied == source_id("c.mp4", 4, content_hash(corpus / "c.mp4"))


def test_files_that_begin_alike_are_no_copies(tmp_path: Path) -> None:
    corpus, run = tmp_path / "in", str(tmp_path / "run")
    start = b"same " * 20_000
    put(corpus, a_mp4=start + b"1", b_mp4=start + b"2", c_mp4=b"x" * len(start + b"3"), d_mp4=start + b"2")
    plan_units(run, list_input(str(corpus)), UnitConfig(size=8))
    original = source_id("b.mp4", len(start) + 1, content_hash(corpus / "b.mp4"))
    assert storage.read_table(f"{run}/units")["exact_copy_of"].to_pylist() == [None, None, None, original]


def test_a_file_above_the_limit_is_never_read(tmp_path: Path) -> None:
    corpus, run = tmp_path / "in", str(tmp_path / "run")
    put(corpus, a_mp4=b"", b_mp4=b"")
    for name in ("a.mp4", "b.mp4"):
        os.truncate(corpus / name, 1 << 42)  # 4 TiB of nothing: reading them would take the better part of an hour
    plan_units(run, list_input(str(corpus)), UnitConfig(size=8), MediaLimits().max_bytes)
    rows = storage.read_table(f"{run}/units").to_pylist()
    assert [row["exact_copy_of"] for row in rows] == [None, None]
    stage = Probe(MediaLimits(), lambda row: None, score_all=False)
    stage.open()
    (source,) = stage.rows(iter([Source("u", rows[0]["url"], {**rows[0], "status": "ok"})]))
    assert source.row["error_code"] == "too_large"


def test_what_a_manifest_names_and_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for, and some devices never end."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "list.txt").write_text("pipe.mp4\nzero.mp4\nfolder.mp4\nnone.mp4\n")
    found = {s.path: (s.bytes, s.error_code) for s in list_input(str(tmp_path / "list.txt")).sources}
    assert found.pop("none.mp4") == (None, "missing")
    assert found == dict.fromkeys(("pipe.mp4", "zero.mp4", "folder.mp4"), (None, "unreadable"))


def test_a_store_that_is_down_is_no_reason_to_take_a_copy_for_an_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a plan once said of copies stays: it must not be made from answers that did not come."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"the same")
    listing = list_input(str(tmp_path))

    def down(url: str, offset: int = 0, size: int | None = None) -> bytes:
        raise TimeoutError(url)

    with monkeypatch.context() as patch, pytest.raises(TimeoutError):
        patch.setattr("curation.storage.read_bytes", down)
        plan_units(str(tmp_path / "run"), listing, UnitConfig())
    assert not (tmp_path / "run" / "units").exists()
    plan_units(str(tmp_path / "run"), listing, UnitConfig())
    assert len(list((tmp_path / "run" / "units").iterdir())) == 1
