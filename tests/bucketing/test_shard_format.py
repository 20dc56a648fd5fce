"""The shard format: deterministic tars that plain `tar` reads, an index whose ranges fetch a member, no way out of a folder."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bucketing.shard_format import FORMAT_VERSION, INDEX, Facts, TarWriter, read_index, read_member, story

FACTS = Facts(128, 25.0, 256, 256)


def made() -> tuple[bytes, pa.Table]:
    out = io.BytesIO()
    tar = TarWriter(out)
    for n, size in enumerate((0, 1, 511, 512, 513, 70_000)):
        tar.add(f"key_{n}", "mp4", bytes([n]) * size, FACTS)
        tar.add(f"key_{n}", "json", story({"n": n}, {"frames": 128}), FACTS)
    tar.close()
    return out.getvalue(), tar.index()


def test_ranges_of_the_index_fetch_the_members_that_tar_sees() -> None:
    data, index = made()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        seen = {m.name: (m.offset_data, tar.extractfile(m).read()) for m in tar}  # type: ignore[union-attr]
        assert {(m.uid, m.gid, m.mtime, m.mode) for m in tar} == {(0, 0, 0, 0o644)}
    rows = index.to_pylist()
    assert [r["member"] for r in rows] == list(seen)
    for row in rows:
        assert (row["offset"], read_member(io.BytesIO(data), row)) == seen[row["member"]]
    assert made()[0] == data


def test_other_bytes_than_the_index_says_are_refused() -> None:
    data, index = made()
    row = index.to_pylist()[-2]
    damaged = data.replace(b"\5\5\5\5", b"\5\5\6\5", 1)
    with pytest.raises(ValueError, match=r"key_5\.mp4"):
        read_member(io.BytesIO(damaged), row)


@pytest.mark.parametrize("key", ["../up", "/root", "a.b", "", "a b", "k" * 91, "é"])
def test_a_key_is_a_plain_name(key: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        TarWriter(io.BytesIO()).add(key, "mp4", b"", FACTS)


def test_the_story_is_strict_json() -> None:
    page = json.loads(story({"clip": {"motion": 1.5, "text": None, "path": "é"}}, {"frames": 1}))
    assert page == {
        "clip": {"motion": 1.5, "text": None, "path": "é"},
        "format_version": FORMAT_VERSION,
        "audio": "dropped",
        "sample": {"frames": 1},
    }
    with pytest.raises(ValueError):
        story({"clip": {"motion": float("nan")}}, {})


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    _, index = made()
    pq.write_table(index, tmp_path / "now.parquet")
    assert read_index(tmp_path / "now.parquet").equals(index)
    pq.write_table(index.cast(INDEX.with_metadata({b"reelset_shard_format": b"0"})), tmp_path / "old.parquet")
    pq.write_table(index.cast(INDEX.remove_metadata()), tmp_path / "none.parquet")
    for name, version in (("old", "0"), ("none", "none")):
        with pytest.raises(ValueError, match=f"format version {version}"):
            read_index(tmp_path / f"{name}.parquet")
