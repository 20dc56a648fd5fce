"""Sidecars: what the encoder made comes back by key; what does not belong together is refused at the start."""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.training_bridge.samples import (
    STILL,
    TALL,
    WIDE,
    TinyLatents,
    TinyTexts,
    damage,
    encode_shards,
    make_shards,
    sample_of,
    write_shard,
)
from training_bridge import encoded, index
from training_bridge.encoded import Encoded, dumps, loads
from training_bridge.loader import micro_batches
from training_bridge.plan import Mix, Plan, Sample, tokens
from training_bridge.reader import Reader, Source
from training_bridge.view import View


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_shards(tmp_path_factory.mktemp("made"), {WIDE: 5, TALL: 3, STILL: 6})
    encode_shards(folder, TinyLatents())
    encode_shards(folder, TinyTexts())
    return folder


LATENTS, LETTERS = Encoded("latent", TinyLatents.fingerprint), Encoded("letters", TinyTexts.fingerprint)


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shards"))


def opened(folder: Path, *kinds: Encoded) -> Reader:
    return Reader({"d": Source(index.read(str(folder)), encoded=kinds)}, 0)


def test_encodings_come_instead_of_pixels(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, joined, letters = opened(made), opened(made, LATENTS, LETTERS), opened(made, LETTERS)
    assert len(plain.sources["d"].index.shards) == 5, "a sidecar is no shard"
    tiny = TinyLatents()
    tiny.open()
    for row in range(14):
        sample = sample_of(plain, f"c{row:03d}")
        whole, short, both = plain.read(sample), joined.read(sample), letters.read(sample)
        latents = tiny.encode(whole.arrays["pixels"])
        assert short.arrays.keys() == {"latents", "letters"} and both.arrays.keys() == {"pixels", "letters"}
        assert short.arrays["latents"].dtype == np.float32
        assert np.array_equal(short.arrays["latents"], latents.astype(np.float16))
        assert short.text == whole.text and "".join(chr(int(c)) for c, _ in short.arrays["letters"]) == whole.text + "\0"
    assert LETTERS.empty(index.read(str(made))).tolist() == [[0.0, 0.0]]


def test_nothing_is_decoded_where_latents_are(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("training_bridge.reader.decode_video", never)
    monkeypatch.setattr("training_bridge.reader.decode_image", never)
    joined = opened(made, LATENTS)
    for row in range(14):
        joined.read(sample_of(joined, f"c{row:03d}"))


def shapes_of(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {"noise": np.zeros(shapes["latents"], np.float32), "letters": np.int64(shapes["letters"][0])}


def test_batches_have_latents_stacked_and_texts_ragged(made: Path) -> None:
    reader = opened(made, LATENTS, LETTERS)
    plan = Plan({"d": reader.sources["d"].shown}, Mix(global_tokens=3 * tokens(WIDE)), 0)
    batches = micro_batches(plan.step, reader, shapes_of, start=0, micro_tokens=10**6, workers=0)
    for batch, _ in zip(batches, range(6), strict=False):
        frames, height, width = batch.shape.frames, batch.shape.height, batch.shape.width
        assert batch.tensors.keys() == {"latents"} and batch.ragged.keys() == {"letters"}
        assert batch.tensors["latents"].shape[1:] == (3, -(-frames // 8), height // 8, width // 8)
        lengths = [len(text) + 1 for text in batch.texts]
        assert [len(t) for t in batch.ragged["letters"]] == lengths == batch.draws["letters"].tolist()
        assert batch.draws["noise"].shape == batch.tensors["latents"].shape


def test_float16_is_off_by_a_two_thousandth_at_most() -> None:
    latents = np.random.default_rng(0).standard_normal((16, 8, 24, 42)).astype(np.float32)
    error = abs(loads(dumps(latents)) - latents)
    assert (error / np.maximum(abs(latents), 2**-14)).max() <= 2**-11
    assert np.sqrt((error**2).mean()) < 2.1e-4, "of latents with a deviation of 1: 74 dB below them"
    assert len(dumps(latents)) < latents.nbytes / 2 + 200
    for wrong in (1e5, np.nan, np.inf):
        with pytest.raises(ValueError, match="numbers that float16 cannot hold"):
            dumps(np.array([1.0, wrong], np.float32))
    pickled = io.BytesIO()
    np.save(pickled, np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        loads(pickled.getvalue())


def test_what_does_not_belong_together_is_refused_at_the_start(shards: Path) -> None:
    place = shards / LATENTS.place("b-24x48x72/shard-000001.tar")
    table = pq.read_table(place.with_suffix(".parquet"))
    opened(shards, LATENTS)

    def refused(match: str, kind: Encoded = LATENTS) -> None:
        with pytest.raises(ValueError, match=match):
            opened(shards, kind)

    refused(
        r"b-1x48x72/shard-000000\.tar has no latent of encoder 'weights 2': .*shard-000000\.parquet, or its tar, is not there",
        Encoded("latent", "weights 2"),
    )
    metadata = {**table.schema.metadata, encoded.MADE_BY: b"weights 2"}
    for changed, why in (
        (table.slice(1, 1), r"entry 0 is c004\.latent\.npy; the shard has c003\.latent\.npy there"),
        (table.take([0, 1, 1]), r"entry 2 is c004\.latent\.npy; the shard has None there"),
        (table.take([1, 0]), r"entry 0 is c004\.latent\.npy; the shard has c003\.latent\.npy there"),
        (table.replace_schema_metadata(metadata), "is of encoder 'weights 2', not of"),
        (table.replace_schema_metadata({}), "shard index of format version none"),
    ):
        pq.write_table(changed, place.with_suffix(".parquet"))
        refused(r"b-24x48x72/encoded-[0-9a-f]{16}/shard-000001\.parquet.*" + why)
    place.with_suffix(".parquet").write_bytes(b"no parquet")
    refused(r"shard-000001\.parquet: ")
    pq.write_table(table, place.with_suffix(".parquet"))
    tar = place.with_suffix(".tar").read_bytes()
    place.with_suffix(".tar").write_bytes(tar[:-512])
    refused(r"shard-000001\.parquet: its tar has \d+ bytes, .* they do not belong together")
    place.with_suffix(".tar").write_bytes(tar)
    pq.write_table(table, place.with_suffix(".parquet"))
    write_shard(shards / "b-24x48x72" / "shard-000001", WIDE, range(3, 5))
    opened(shards, LATENTS)  # made anew, with the same bytes
    file = shards / "b-24x48x72" / "shard-000001.parquet"
    shard = pq.read_table(file)
    at = shard.column_names.index("sha256")
    pq.write_table(shard.set_column(at, "sha256", [["0" * 64] * len(shard)]).cast(shard.schema), file)
    refused(r"shard-000001\.parquet is of another b-24x48x72/shard-000001\.tar, of the same keys: encode it anew")


def test_a_view_has_no_latents_and_names_are_plain(made: Path) -> None:
    with pytest.raises(ValueError, match="encoded latents are of whole samples"):
        Source(index.read(str(made)), View(8, 32, 48), (LATENTS,))
    Source(index.read(str(made)), View(8, 32, 48), (LETTERS,))
    for name in ("txt", "pixels", "a.b", "../t5", ""):
        with pytest.raises(ValueError, match="names no encodings"):
            Encoded(name, "x")


def test_a_damaged_encoding_is_a_bad_sample(shards: Path) -> None:
    for file in (shards / "b-24x48x72").glob("shard-*"):
        file.rename(file.with_name("_" + file.name))  # so that `damage` finds the sidecar only
    damage(shards, "c001", "latent.npy")
    for file in (shards / "b-24x48x72").glob("_shard-*"):
        file.rename(file.with_name(file.name[1:]))
    read = opened(shards, LATENTS)
    example = read.read(sample_of(read, "c001"))
    assert example.key != "c001" and example.bad[0][0] == "c001" and "encoded-" in example.bad[0][1]
