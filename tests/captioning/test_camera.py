"""Camera moves of made places through the whole way, file and decode included, and what gets no label."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from captioning import camera
from captioning.camera import CLASSES, Camera, CameraConfig, Classifier, Unlabelled, label, motion_of, shipped
from curation.clips import ClipConfig
from curation.media import MediaLimits, probe
from curation.stage import Source
from curation.tables import SOURCES
from filters.frames import FramesConfig
from filters.measure import MeasureConfig, measure
from filters.meter import Meter
from jobs import camera_scenes, train_camera
from tests.filters.synthetic import write

Plane = NDArray[np.uint8]
SEEDS = 1 << 41
"""Clips that neither the training nor the held-out set of docs/camera.md has."""


@cache
def tiles() -> list[Plane]:
    return camera_scenes.textures(np.random.default_rng(SEEDS), 24)


def series_of(pictures: list[Plane], fps: float, rotation: int = 0) -> dict[str, Any]:
    """What the meter keeps of grey pictures, enlarged four times."""
    height, width = pictures[0].shape
    row: dict[str, Any] = dict.fromkeys(SOURCES.names)
    shown = (width, height) if rotation % 180 else (height, width)
    row |= {"fps": fps, "rotation": rotation, "pixel_aspect": 1.0, "height": shown[0] * 4, "width": shown[1] * 4}
    meter = Meter(row, FramesConfig(), 1e9, None, io.BytesIO())
    for i, picture in enumerate(pictures):
        large = cv2.resize(picture, (width * 4, height * 4), interpolation=cv2.INTER_LINEAR)
        meter.push(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="gray"), i / fps)
    return meter.series()


def source_of(series: dict[str, Any] | None, end: int, kind: str = "video") -> Source:
    clip = {"status": "ok", "kind": kind, "start_frame": 0, "end_frame": end}
    clip |= dict.fromkeys(("camera", "camera_confidence", "camera_code"))
    return Source("u", "", {"status": "ok"}, clips=[clip], series=series)


def labelled(source: Source) -> dict[str, Any]:
    stage = Camera(CameraConfig())
    stage.open()
    stage.one(source)
    return source.clips[0]


def pan(count: int, step: float) -> list[Plane]:
    """A window (72, 128) of a lively texture whose content moves `step` pixels a picture to the right."""
    wide = np.hstack([tiles()[i % 24] for i in (2, 5, 7, 11)])
    start = 448 - step * count / 2
    moves = [np.array([[1, 0, -start + step * i], [0, 1, -60]], np.float32) for i in range(count)]
    return [cv2.warpAffine(wide, m, (128, 72), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) for m in moves]


def test_shipped_parameters_are_small_and_fit() -> None:
    assert camera.SHIPPED.stat().st_size < 200_000
    assert len(CLASSES) == len(set(CLASSES)) == 16
    odds = shipped()(np.zeros((2, len(shipped().shift))))
    assert odds.shape == (2, 16) and np.allclose(odds.sum(axis=1), 1)


def test_held_out_places_are_told_apart() -> None:
    made = [train_camera.example((name, SEEDS + 16 * i + j), tiles()) for j, name in enumerate(CLASSES) for i in range(3)]
    x, y = train_camera.table([m for m in made if m is not None])
    best = shipped()(x).argmax(axis=1)
    right = float(np.mean(best == y))
    assert right >= LEAST_RIGHT, [(CLASSES[a], CLASSES[b]) for a, b in zip(y, best, strict=True) if a != b]


LEAST_RIGHT = 0.75


def test_sides_are_the_cameras_through_a_file(tmp_path: Path) -> None:
    for step, sides in ((-2.0, ("pan_right", "truck_right")), (2.0, ("pan_left", "truck_left"))):
        pictures = [cv2.cvtColor(cv2.resize(p, (512, 288)), cv2.COLOR_GRAY2RGB) for p in pan(48, step)]
        path = write(tmp_path / f"{sides[0]}.mp4", pictures, fps=24)
        row: dict[str, Any] = dict.fromkeys(SOURCES.names) | {"source_id": "s", "path": path.name, "status": "ok"}
        row |= probe(str(path), MediaLimits())
        found = measure(str(path), row, MeasureConfig(clips=ClipConfig(min_s=1)), MediaLimits())
        source = Source("u", "", row, clips=found.clips, series=found.series)
        clip = labelled(source)
        assert clip["camera"] in sides
        assert 0 < clip["camera_confidence"] <= 1 and clip["camera_code"] is None


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_source_is_labelled_as_displayed(rotation: int) -> None:
    stored = [np.ascontiguousarray(np.rot90(p, k=rotation // 90)) for p in pan(30, -2.0)]
    assert labelled(source_of(series_of(stored, 12.0, rotation), 30))["camera"] in ("pan_right", "truck_right")


def test_bars_are_no_still_background() -> None:
    pictures = [p.copy() for p in pan(30, -2.0)]
    for picture in pictures:
        picture[:11] = picture[-11:] = 16
    assert labelled(source_of(series_of(pictures, 12.0), 30))["camera"] in ("pan_right", "truck_right")


def test_a_still_picture_is_static() -> None:
    assert labelled(source_of(series_of(pan(1, 0.0) * 30, 12.0), 30))["camera"] == "static"


def test_what_cannot_be_labelled_says_why() -> None:
    moving = series_of(pan(30, -2.0), 12.0)
    flat = series_of([np.full((72, 128), 90, np.uint8)] * 30, 12.0)
    cases = {
        "too_short": [(moving, 6), (moving, 1), (series_of(pan(1, 0.0), 12.0), 1)],
        "no_texture": [(flat, 30)],
        "not_measured": [({"time_s": [0.0, 0.1], "camera_frame": None}, 2), ({"time_s": [0.0, 0.1]}, 2), (None, 2)],
    }
    for code, given in cases.items():
        for series, end in given:
            clip = labelled(source_of(series, end))
            assert (clip["camera"], clip["camera_confidence"], clip["camera_code"]) == (None, None, code)


def test_an_image_has_no_camera_motion() -> None:
    clip = labelled(source_of({"time_s": [0.0]}, 1, kind="image"))
    assert clip["camera"] is clip["camera_confidence"] is clip["camera_code"] is None


def test_a_clip_sees_only_its_own_pairs() -> None:
    series = series_of(pan(30, -2.0) + pan(30, 2.0)[:30], 12.0)
    first = label(series, 0, 30, shipped(), 0.7)
    second = label(series, 30, 60, shipped(), 0.7)
    assert first[0].endswith("right") and second[0].endswith("left")
    assert label(series, 0, 30, shipped(), 0.7) == first
    assert all(np.isfinite(part).all() for part in motion_of(series, 0, 60, 0.7))
    with pytest.raises(Unlabelled, match="too_short"):
        motion_of(series, 0, 30, 5.0)


def test_made_clips_are_the_same_each_time() -> None:
    clip = camera_scenes.drawn("truck_left", 7)
    once, again = (np.stack(list(camera_scenes.render(clip, tiles()))) for _ in range(2))
    assert np.array_equal(once, again) and once.shape == (clip.count, clip.height, clip.width)


def test_mirrored_and_backward_numbers_are_those_of_such_pictures() -> None:
    pictures = pan(30, -2.0)
    mirrored = [np.ascontiguousarray(p[:, ::-1]) for p in pictures]
    plain, turned = (motion_of(series_of(p, 12.0), 0, 30, 0.7) for p in (pictures, mirrored))
    of = {i: (name, pairs) for i, (name, pairs, _) in enumerate(train_camera.variants(("pan_right", *plain)))}
    assert [name for name, _ in of.values()] == ["pan_right", "pan_left", "pan_left", "pan_right"]
    assert np.allclose(np.median(of[2][1], axis=0), np.median(turned[0], axis=0), atol=0.06)


def test_the_script_makes_a_file_that_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "small.npz"
    monkeypatch.setattr(train_camera, "TILES", 6)
    given = ["x", "--out", str(out), "--clips", "19", "--held-out", "16", "--epochs", "2", "--workers", "1"]
    monkeypatch.setattr("sys.argv", given)
    train_camera.main()
    assert "held-out clips" in capsys.readouterr().out
    assert label(series_of(pan(30, -2.0), 12.0), 0, 30, Classifier.read(out), 0.7)[0] in CLASSES
