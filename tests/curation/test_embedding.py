"""Clip embeddings: the weightless model, and tiny models of the other kinds through their real loading code."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from curation import embedding, layout
from curation.embedding import EmbeddingConfig, Model, check, embed, load
from curation.errors import ConfigError
from curation.layout import Vector
from curation.picture import Picture
from tests.media_samples import texture
from tests.tiny_clip import NAME, needs_open_clip, tiny_clip

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # SSCD is published so
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
LAYOUT = EmbeddingConfig(name="layout", kind="layout", batch_size=4)


def jpeg(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def clip(number: int, **more: Any) -> dict[str, Any]:
    return {"clip_id": f"c{number}", "width": 320, "height": 180, **dict.fromkeys(embedding.BARS, 0.0), **more}


def frame(number: int, seed: int) -> dict[str, Any]:
    return {"clip_id": f"c{number}", "jpeg": jpeg(texture(320, 180, seed, cell=24))}


class Fixed:
    """Gives each picture what its red says."""

    batch_size, width = 3, 2

    def __init__(self, vectors: dict[int, list[float] | None]) -> None:
        self.vectors = vectors
        self.batches: list[int] = []

    def __call__(self, pictures: list[Picture]) -> list[Vector | None]:
        self.batches.append(len(pictures))
        found = [self.vectors[round(float(p[..., 0].mean()) / 50)] for p in pictures]
        return [None if v is None else np.array(v, np.float32) for v in found]


def red(number: int, level: int) -> dict[str, Any]:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., 0] = 50 * level
    return {"clip_id": f"c{number}", "jpeg": jpeg(picture)}


def test_a_clip_is_the_unit_mean_of_its_frames_unit_vectors() -> None:
    model = Fixed({1: [3, 0], 2: [0, 0.1]})
    found = embed(model, [clip(0), clip(1)], [red(0, 1), red(0, 2), red(1, 2), red(1, 2), red(9, 1)])
    assert found["c0"] == pytest.approx([np.sqrt(0.5), np.sqrt(0.5)], abs=1e-6)
    assert found["c1"] == pytest.approx([0, 1])
    assert model.batches == [3, 1], "frames of different clips share a batch; another clip's frame goes to none"


@pytest.mark.parametrize("nothing", [None, [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_vector_that_is_none_counts_for_nothing(nothing: list[float] | None) -> None:
    found = embed(Fixed({1: [1, 0], 2: nothing}), [clip(0), clip(1)], [red(0, 1), red(0, 2), red(1, 2)])
    assert found["c0"] == pytest.approx([1, 0])
    assert found["c1"] is None


def test_opposite_frames_leave_a_clip_without_a_vector() -> None:
    assert embed(Fixed({1: [1, 0], 2: [-1, 0]}), [clip(0)], [red(0, 1), red(0, 2)]) == {"c0": None}


def test_a_broken_frame_and_a_clip_without_frames() -> None:
    broken = {"clip_id": "c0", "jpeg": b"\xff\xd8\xff nothing"}
    found = embed(load(LAYOUT, "embeddings.layout"), [clip(0), clip(1)], [broken, frame(0, 1)])
    alone = embed(load(LAYOUT, "embeddings.layout"), [clip(0)], [frame(0, 1)])
    assert np.array_equal(found["c0"], alone["c0"])  # type: ignore[arg-type]
    assert found["c1"] is None


def test_bars_are_taken_off() -> None:
    inside = texture(320, 140, 4, cell=24)
    barred = np.zeros((180, 320, 3), np.uint8)
    barred[20:160] = inside
    model = load(LAYOUT, "embeddings.layout")
    # bars are in pixels of the source, twice as large as the kept frame
    big = clip(0, width=640, height=360, border_top_px=40.0, border_bottom_px=40.0)
    a = embed(model, [big], [{"clip_id": "c0", "jpeg": jpeg(barred)}])["c0"]
    b = embed(model, [clip(0, height=140)], [{"clip_id": "c0", "jpeg": jpeg(inside)}])["c0"]
    assert a is not None and b is not None and float(a @ b) > 0.99
    all_bars = clip(0, border_top_px=90.0, border_bottom_px=90.0)
    assert embed(model, [all_bars], [frame(0, 1)])["c0"] is not None, "bars that leave nothing are not taken off"


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"kind": "open_clip"}, "needs weights and model"),
        ({"kind": "open_clip", "weights": "openai"}, "needs model"),
        ({"kind": "torchscript"}, "needs weights"),
        ({"kind": "layout", "name": "../up"}, "pattern"),
        ({"kind": "vgg"}, "layout"),
    ],
)
def test_a_model_that_is_not_told_whole_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EmbeddingConfig(**{"name": "a", **settings})


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy-detection network of SSCD's form, with random weights."""
    import torch

    torch.manual_seed(3)
    layers = (torch.nn.Conv2d(3, 8, 5, 4), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 24))
    file = tmp_path_factory.mktemp("weights") / "tiny.torchscript.pt"
    torch.jit.script(torch.nn.Sequential(*layers)).save(str(file))
    return file


@needs_torch
def test_a_torchscript_model_sees_pictures_as_imagenet_does(copies: Path) -> None:
    import torch

    config = EmbeddingConfig(name="sscd", kind="torchscript", weights=str(copies), size=64, batch_size=2, device="cpu")
    model = load(config, "embeddings.sscd")
    assert model.width == 24
    picture = np.full((90, 160, 3), (10, 200, 90), np.uint8)
    (found,) = model([picture])
    mean, std = torch.tensor(embedding.IMAGENET_MEAN), torch.tensor(embedding.IMAGENET_STD)
    given = ((torch.tensor([10.0, 200.0, 90.0]) / 255 - mean) / std)[None, :, None, None].expand(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = torch.jit.load(str(copies))(given)[0].numpy()  # type: ignore[no-untyped-call]
    assert found == pytest.approx(wanted, abs=1e-5)
    vectors = embed(model, [clip(0), clip(1), clip(2)], [frame(n, n) for n in range(3)])
    assert all(v is not None and np.linalg.norm(v) == pytest.approx(1, abs=1e-5) for v in vectors.values())


@needs_torch
def test_a_file_that_is_no_model_names_its_setting(tmp_path: Path) -> None:
    import torch

    (tmp_path / "noise.pt").write_bytes(b"not a model")
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "same.pt"))
    for name in ("noise.pt", "same.pt"):
        config = EmbeddingConfig(name="a", kind="torchscript", weights=str(tmp_path / name), device="cpu")
        with pytest.raises(ConfigError, match=r"embeddings\.a\.weights: .*" + name):
            load(config, "embeddings.a")


def test_weights_that_are_not_there_are_refused_before_any_work(tmp_path: Path) -> None:
    config = EmbeddingConfig(name="a", kind="torchscript", weights=str(tmp_path / "none.pt"))
    with pytest.raises(ConfigError, match=r"embeddings\.a\.weights: no file"):
        check(config, "embeddings.a")


@needs_open_clip
def test_a_clip_model_has_two_towers_in_one_space(tmp_path: Path) -> None:
    made, settings = tiny_clip(tmp_path)
    import open_clip
    import torch

    model = load(EmbeddingConfig(**settings), "embeddings.clip")
    assert isinstance(model, embedding.OpenClip) and model.width == 16
    vectors = embed(model, [clip(n) for n in range(3)], [frame(n, n) for n in range(3)])
    assert all(v is not None and v.shape == (16,) for v in vectors.values())
    texts = model.text(["a dog", "two people dance"])
    assert texts.shape == (2, 16) and np.linalg.norm(texts, axis=1) == pytest.approx([1, 1], abs=1e-5)
    with torch.inference_mode():
        wanted = made.encode_text(open_clip.get_tokenizer(NAME)(["a dog"]))[0].numpy()
    assert texts[0] == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-5)
    with pytest.raises(ConfigError, match=r"embeddings\.b\.model: open_clip has no model"):
        check(EmbeddingConfig(**{**settings, "model": "none"}), "embeddings.b")


def test_every_kind_is_a_model() -> None:
    model: Model = load(LAYOUT, "embeddings.layout")
    assert model.width == layout.WIDTH and model.batch_size == 4
