"""The index of a folder of shards, and what makes it no index."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bucketing.pack import pack_shard
from bucketing.shard_format import read_index, read_member
from tests.bucketing.test_pack import SHARD, describe, fake_run
from training_bridge.index import Shape, read


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of two units, four samples in all; the folder of their split."""
    run = str(tmp_path / "run")
    samples = fake_run(run, tmp_path / "made")
    pack_shard(run, "everyday", SHARD, samples[:3], describe)
    pack_shard(run, "everyday", SHARD.replace("000000", "000001"), samples[3:], describe)
    return tmp_path / "run" / "shards" / "everyday" / "train"


def test_it_has_every_sample_where_the_shards_have_it(shards: Path) -> None:
    index = read(str(shards))
    assert index.shards == ("v256-16x9-f128/shard-000000.tar", "v256-16x9-f128/shard-000001.tar")
    rows = index.table.to_pylist()
    assert [row["key"] for row in rows] == ["u2_1", "u1_0", "u2_0", "u1_2"]
    assert [row["txt_size"] is not None for row in rows] == [False, True, False, False] and not any(r["image"] for r in rows)
    assert {shape: list(found) for shape, found in index.of_shape.items()} == {Shape(128, 192, 336): [0, 1, 2, 3]}
    for row in rows:
        with (shards / index.shards[row["shard"]]).open("rb") as tar:
            member = {name: row[f"media_{name}"] for name in ("offset", "size", "sha256")} | {"member": row["key"]}
            unit, number = row["key"].split("_")
            assert read_member(tar, member) == f"bytes of {unit} {number} ".encode() * 100 * (int(number) + 1)


def test_its_fingerprint_is_of_what_the_shards_hold(shards: Path, tmp_path: Path) -> None:
    index = read(str(shards))
    assert read(str(shards) + "/").fingerprint == index.fingerprint, "the place does not matter"
    moved = Path(shutil.copytree(shards, tmp_path / "elsewhere"))
    assert read(str(moved)).fingerprint == index.fingerprint and read(str(moved)).table.equals(index.table)
    for file in (moved / "v256-16x9-f128").glob("*1.*"):
        file.unlink()
    assert read(str(moved)).fingerprint != index.fingerprint and len(read(str(moved)).table) == 2


def test_what_is_no_index_is_said(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no shard that is finished"):
        read(str(tmp_path / "made"))
    twice = Path(shutil.copytree(shards, tmp_path / "run" / "shards" / "everyday" / "validation"))
    with pytest.raises(ValueError, match="4 keys occur twice; name the folder of one split of one subset"):
        read(str(twice.parent))
    tar = shards / "v256-16x9-f128" / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"shard-000001\.parquet: its tar has \d+ bytes, .* they do not belong together"):
        read(str(shards))
    tar.unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.parquet: "):
        read(str(shards))


def test_another_format_version_is_refused(shards: Path) -> None:
    file = shards / "v256-16x9-f128" / "shard-000000.parquet"
    table = read_index(file)
    pq.write_table(table.replace_schema_metadata({"reelset_shard_format": "99"}), file)
    with pytest.raises(ValueError, match=r"shard-000000\.parquet: shard index of format version 99"):
        read(str(shards))
