"""The aesthetic scorer, on a tiny CLIP and on heads that the tests make: real loading code, random weights."""

import io
import json
import os
import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.errors import ConfigError
from curation.open_clip_model import import_package
from curation.stage import Source
from filters.aesthetic import Aesthetic, AestheticConfig, check, load_head, middle_jpeg

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("torch", "torchvision", "open_clip")),
    reason="open_clip is not installed (make with the aesthetic extra)",
)

WIDTH = 16
MODEL = "tiny-for-tests"
CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
}


@dataclass
class Weights:
    """Files of a tiny CLIP and two heads for it, and the CLIP itself."""

    clip: Path
    linear: Path
    layered: Path
    model: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    open_clip = import_package("aesthetic")
    import torch

    folder = tmp_path_factory.mktemp("weights")
    (folder / f"{MODEL}.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(folder)
    torch.manual_seed(7)
    model = open_clip.create_model(MODEL).eval()
    torch.save(model.state_dict(), folder / "clip.pt")
    torch.save(torch.nn.Linear(WIDTH, 1).state_dict(), folder / "linear.pth")
    layers = torch.nn.Sequential(torch.nn.Linear(WIDTH, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    torch.save({f"layers.{k}": v for k, v in layers.state_dict().items()}, folder / "layered.pth")
    return Weights(folder / "clip.pt", folder / "linear.pth", folder / "layered.pth", model)


def config(made: Weights, **changed: Any) -> AestheticConfig:
    settings = {"model": MODEL, "weights": str(made.clip), "head": made.linear, "batch_size": 2, "device": "cpu"}
    return AestheticConfig(**{**settings, **changed})


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def source(clips: int) -> Source:
    """Clips of 10 frames, each with kept frames 1, 5 and 8: frame 5 is nearest the middle, 4.5."""
    rows = [
        {
            "clip_id": f"c{i}",
            "status": "ok",
            "error_code": None,
            "error_message": None,
            "start_frame": 10 * i,
            "end_frame": 10 * i + 10,
            "aesthetic": None,
        }
        for i in range(clips)
    ]
    frames = [{"clip_id": f"c{i}", "frame": 10 * i + at, "jpeg": jpeg(100 * i + at)} for i in range(clips) for at in (1, 5, 8)]
    return Source("unit", "url", {"status": "ok"}, clips=rows, frames=frames)


def scored(config: AestheticConfig, of: Source, wanted: Any = None) -> Source:
    stage = Aesthetic(config, wanted)
    stage.open()
    (done,) = stage.rows(iter([of]))
    stage.close()
    assert done.row["status"] == "ok", done.row
    return done


def embedding(made: Weights, picture: bytes) -> Any:
    """Normalised embedding (1, WIDTH), computed straight from the model."""
    import torch

    preprocess = import_package("aesthetic").create_model_and_transforms(MODEL)[2]
    with torch.inference_mode(), Image.open(io.BytesIO(picture)) as image:
        x_ND = made.model.encode_image(preprocess(image.convert("RGB"))[None])
    return x_ND / x_ND.norm()


def test_linear_head_on_middle_frame(made: Weights) -> None:
    import torch

    done = scored(config(made), source(3))
    head = torch.load(made.linear, weights_only=True)
    for i, clip in enumerate(done.clips):
        truth = (embedding(made, jpeg(100 * i + 5)) @ head["weight"].T + head["bias"]).item()
        assert clip["aesthetic"] == pytest.approx(truth, abs=1e-5)
        assert clip["error_code"] is None
    assert len({clip["aesthetic"] for clip in done.clips}) == 3


def test_layered_head_has_no_activations(made: Weights) -> None:
    import torch

    done = scored(config(made, head=made.layered), source(1))
    head = torch.load(made.layered, weights_only=True)
    hidden = embedding(made, jpeg(5)) @ head["layers.0.weight"].T + head["layers.0.bias"]
    truth = (hidden @ head["layers.2.weight"].T + head["layers.2.bias"]).item()
    assert done.clips[0]["aesthetic"] == pytest.approx(truth, abs=1e-5)


def test_batch_size_and_order_change_nothing(made: Weights) -> None:
    one_by_one = {c["clip_id"]: c["aesthetic"] for c in scored(config(made, batch_size=1), source(5)).clips}
    turned = source(5)
    turned.clips.reverse()
    together = {c["clip_id"]: c["aesthetic"] for c in scored(config(made, batch_size=4), turned).clips}
    assert together == pytest.approx(one_by_one, abs=1e-6)


def test_only_wanted_and_sound_clips_are_scored(made: Weights) -> None:
    given = source(4)
    given.clips[2]["status"] = "error"
    done = scored(config(made), given, lambda source: {"c0", "c2"})
    assert [clip["aesthetic"] is not None for clip in done.clips] == [True, False, False, False]


def test_unreadable_frame_nulls_that_clip_only(made: Weights) -> None:
    given = source(3)
    given.frames[4]["jpeg"] = b"no picture"
    given.frames = [frame for frame in given.frames if frame["clip_id"] != "c2"]
    done = scored(config(made), given)
    assert [clip["aesthetic"] is None for clip in done.clips] == [False, True, True]
    assert [clip["error_code"] for clip in done.clips] == [None, "scorer_failed", "scorer_failed"]
    assert "no readable JPEG" in done.clips[1]["error_message"]
    assert "no kept frame" in done.clips[2]["error_message"]
    assert {clip["status"] for clip in done.clips} == {"ok"}


def test_score_that_is_no_number_is_null(made: Weights, tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.full((1, WIDTH), torch.nan), "bias": torch.zeros(1)}, tmp_path / "nan.pth")
    (clip,) = scored(config(made, head=tmp_path / "nan.pth"), source(1)).clips
    assert (clip["aesthetic"], clip["error_code"]) == (None, "scorer_failed")


def test_nearest_the_middle_prefers_the_earlier() -> None:
    clip = {"clip_id": "a", "start_frame": 0, "end_frame": 10}
    frames = [{"clip_id": "a", "frame": n, "jpeg": bytes([n])} for n in (8, 5, 4, 1)]
    assert middle_jpeg(clip, frames) == bytes([4])


def test_stage_is_picklable_before_open(made: Weights) -> None:
    stage = pickle.loads(pickle.dumps(Aesthetic(config(made, gpus=0.5))))
    assert (stage.name, stage.gpus, stage.predictor) == ("aesthetic", 0.5, None)


def test_without_a_head_it_is_off_and_nothing_is_asked_for() -> None:
    off = AestheticConfig(weights="no such weights")
    assert not off.enabled
    check(off)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"weights": None}, "aesthetic.weights"),
        ({"weights": "/no/such/file.pt"}, "aesthetic.weights: no file"),
        ({"weights": "no_such_tag"}, "aesthetic.weights: 'no_such_tag' is no file, and no tag"),
        ({"head": Path("/no/such/head.pth")}, "aesthetic.head: no file"),
        ({"model": "no-such-model"}, "aesthetic.model"),
    ],
)
def test_check_names_the_setting(made: Weights, changed: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        check(config(made, **changed))


def test_known_tag_passes_the_check(made: Weights) -> None:
    check(AestheticConfig(model="ViT-L-14", weights="openai", head=made.linear))


def test_missing_package_names_the_install(made: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install .*open_clip_torch"):
        check(config(made))


def test_weights_that_do_not_fit_are_refused(made: Weights, tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(1, WIDTH + 1), "bias": torch.zeros(1)}, tmp_path / "wide.pth")
    with pytest.raises(ConfigError, match=r"aesthetic\.head: takes embeddings 17 wide"):
        Aesthetic(config(made, head=tmp_path / "wide.pth")).open()
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"aesthetic\.weights: .* does not load"):
        Aesthetic(config(made, weights=str(tmp_path / "other.pt"))).open()


class RunsOnLoad:
    """What a pickle could do when loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)

    marker: Path


def test_head_file_runs_no_code(made: Weights, tmp_path: Path) -> None:
    import torch

    trap = RunsOnLoad()
    trap.marker = tmp_path / "ran"
    torch.save(trap, tmp_path / "trap.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("trap.pth", "text.pth"):
        with pytest.raises(ConfigError, match=r"aesthetic\.head: .* is no torch state dict"):
            load_head(tmp_path / name)
    assert not trap.marker.exists()


@pytest.mark.parametrize("keys", [["weight"], ["layers.0.weight"], ["fc.weight", "fc.bias"]])
def test_other_heads_are_refused(keys: list[str], tmp_path: Path) -> None:
    import torch

    torch.save({key: torch.zeros(1, WIDTH) for key in keys}, tmp_path / "head.pth")
    with pytest.raises(ConfigError, match="is no LAION head"):
        load_head(tmp_path / "head.pth")
