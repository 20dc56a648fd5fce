"""One decode of real files written for the purpose: rows, series, clips, kept frames, and what damage does."""

import contextlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from curation import storage
from curation.child import Child
from curation.clips import ClipConfig
from curation.errors import ConfigError
from curation.media import MediaLimits, probe
from curation.stage import Cost, Source
from curation.tables import CLIPS, FRAMES, SERIES, SOURCES
from filters import transnet
from filters.frames import FramesConfig, choose
from filters.measure import Measure, MeasureConfig, Measured, is_vfr, measure
from filters.shots import ShotConfig
from tests.filters.synthetic import pan, texture, write

LIMITS = MediaLimits()
PER_FRAME = [f.name for f in SERIES][1 : [f.name for f in SERIES].index("change_map")]


def row_of(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SOURCES.names)
    row |= {"source_id": "0123456789abcdef", "path": path.name, "bytes": path.stat().st_size, "status": "ok"}
    return row | probe(str(path), LIMITS)


def measured(path: Path, config: MeasureConfig | None = None) -> Measured:
    return measure(str(path), row_of(path), config or MeasureConfig(clips=ClipConfig(min_s=1)), LIMITS)


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letterboxed: 60 frames moving 3 pixels each, then 48 still ones; 24 a second, 640x360."""
    moving = pan(texture(1, 360, 1024), 60, 3.0)
    still = pan(texture(2, 360, 1024), 1, 0.0) * 48
    pictures = [p.copy() for p in moving + still]
    for picture in pictures:
        picture[:40] = picture[-40:] = 16
    return write(tmp_path_factory.mktemp("measure") / "two.mp4", pictures)


@pytest.fixture(scope="module")
def result(two_scenes: Path) -> Measured:
    return measured(two_scenes)


def test_the_rows_are_those_of_the_tables(result: Measured) -> None:
    assert result.series is not None
    for rows, schema in ((result.clips, CLIPS), ([result.series], SERIES), (result.frames, FRAMES)):
        table = storage.rows_table(rows, schema)
        assert table.num_rows == len(rows)
        assert set(rows[0]) == set(schema.names)
    assert set(result.row_updates) <= set(SOURCES.names)


def test_cuts_clips_and_times(result: Measured) -> None:
    assert result.row_updates["cut_frames"] == [60]
    assert result.row_updates["cut_times_s"] == pytest.approx([2.5])
    assert result.row_updates["gradual"] == []
    assert result.row_updates["frames"] == 108 and result.row_updates["is_vfr"] is False
    assert [(c["start_frame"], c["end_frame"]) for c in result.clips] == [(0, 60), (60, 108)]
    assert [c["clip_id"] for c in result.clips] == [
        "0123456789abcdef_0000000_0000060",
        "0123456789abcdef_0000060_0000108",
    ]
    assert [c["duration_s"] for c in result.clips] == pytest.approx([2.5, 2.0])
    assert result.clips[1]["end_s"] == pytest.approx(4.5)


def test_scores_know_the_moving_from_the_still(result: Measured) -> None:
    moving, still = result.clips
    assert moving["motion_mv"] == pytest.approx(6.0, rel=0.2) and still["motion_mv"] < 0.1
    assert moving["motion_vmaf"] > 2 > 0.1 > still["motion_vmaf"]
    assert moving["motion_static_frac"] == 0.0 and still["motion_static_frac"] == 1.0
    assert moving["jitter_shots_per_s"] == pytest.approx(1 / 4.5)
    for clip in result.clips:
        assert abs(clip["border_top_px"] - 40) <= 2 and abs(clip["border_bottom_px"] - 40) <= 2
        assert clip["border_left_px"] == clip["border_right_px"] == 0
        assert clip["border_frac"] == pytest.approx(80 / 360, abs=0.02)
        assert 0 <= clip["quality_exposure"] <= 1
        assert all(v is None or not np.isnan(v) for v in clip.values() if isinstance(v, float | None))


def test_the_series_has_a_value_for_every_frame(result: Measured) -> None:
    assert result.series is not None
    for name in PER_FRAME:
        if name == "shot_probability":
            assert result.series[name] is None
        else:
            assert len(result.series[name]) == 108, name
            assert np.isfinite(result.series[name]).all(), name
    assert len(result.series["change_map"]) == 107 // 6, "one a quarter of a second"
    samples = len(result.series["sample_frame"])
    assert samples == 9  # every half second
    assert all(len(result.series[n]) == samples for n in ("border_top", "sharpness", "blockiness"))


def test_kept_frames_are_jpegs_inside_their_clips(result: Measured) -> None:
    for clip in result.clips:
        frames = [f for f in result.frames if f["clip_id"] == clip["clip_id"]]
        assert 2 <= len(frames) <= 4
        assert all(clip["start_frame"] <= f["frame"] < clip["end_frame"] for f in frames)
        assert all(Image.open(io.BytesIO(f["jpeg"])).size == (640, 360) for f in frames)


def test_the_same_file_gives_the_same_bytes(two_scenes: Path, result: Measured) -> None:
    again = measured(two_scenes)
    assert storage.rows_table(again.clips, CLIPS).equals(storage.rows_table(result.clips, CLIPS))
    assert storage.rows_table([again.series], SERIES).equals(storage.rows_table([result.series], SERIES))
    assert again.frames == result.frames


def test_a_variable_rate_is_told_from_the_frames(tmp_path: Path) -> None:
    pictures = pan(texture(1, 120, 400), 40, 1.0)
    times_s = [i / 30 for i in range(20)] + [20 / 30 + i / 10 for i in range(20)]
    found = measured(write(tmp_path / "vfr.mp4", pictures, 30, times_s))
    assert found.row_updates["is_vfr"] is True
    assert found.series is not None
    np.testing.assert_allclose(found.series["time_s"], times_s, atol=1e-3)
    assert found.clips[0]["duration_s"] == pytest.approx(20 / 30 + 2.0, abs=0.1)


def test_rounded_time_stamps_are_no_variable_rate() -> None:
    assert not is_vfr(np.round(np.arange(100) / 23.976, 3))
    assert not is_vfr(np.zeros(1))


def test_a_video_of_one_frame_has_no_motion(tmp_path: Path) -> None:
    config = MeasureConfig(clips=ClipConfig(min_s=0.01))
    found = measured(write(tmp_path / "one.mp4", pan(texture(1, 120, 400), 1, 0.0)), config)
    assert found.row_updates["frames"] == 1 and found.row_updates["cut_frames"] == []
    clip = found.clips[0]
    assert clip["motion_vmaf"] is clip["motion_mv"] is clip["motion_static_frac"] is None
    assert clip["quality_sharpness"] > 0
    assert len(found.frames) == 1


def test_an_odd_and_tiny_video_is_measured(tmp_path: Path) -> None:
    found = measured(write(tmp_path / "tiny.mp4", pan(texture(1, 18, 48), 40, 0.5)))
    assert len(found.clips) == 1 and found.clips[0]["motion_vmaf"] > 0


@pytest.mark.parametrize("height", [8, 16, 24, 30])
def test_a_wide_and_low_video_is_measured(tmp_path: Path, height: int) -> None:
    """OpenCV's flow died of such pictures: in a process of its own, so that only that one would."""
    path = write(tmp_path / "wide.mp4", pan(texture(1, height, 208), 60, 1.0))
    with contextlib.closing(Child(LIMITS)) as child:
        found = child.call(measure, str(path), row_of(path), MeasureConfig(clips=ClipConfig(min_s=1)), LIMITS)
    (clip,) = found.clips

    assert clip["motion_mv"] * height / 720 == pytest.approx(1.0, rel=0.35)


def test_an_image_is_one_clip_with_bars_and_quality(tmp_path: Path) -> None:
    picture = texture(3, 300, 500)
    picture[:, :60] = picture[:, -60:] = 0
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    found = measured(path)
    clip = found.clips[0]
    assert (clip["kind"], clip["start_frame"], clip["end_frame"], clip["duration_s"]) == ("image", 0, 1, 0.0)
    assert abs(clip["border_left_px"] - 60) <= 1 and abs(clip["border_right_px"] - 60) <= 1
    assert clip["motion_vmaf"] is None and clip["fps"] is None
    assert clip["quality_colorfulness"] > 5
    assert [f["frame"] for f in found.frames] == [0]
    for rows, schema in ((found.clips, CLIPS), ([found.series], SERIES), (found.frames, FRAMES)):
        assert storage.rows_table(rows, schema).num_rows == 1


def source_of(path: Path) -> Source:
    return Source("u", str(path), row_of(path), costs={"measure": Cost()})


def test_the_stage_measures_in_its_child_and_counts_the_cost(two_scenes: Path, result: Measured) -> None:
    stage = Measure(LIMITS, MeasureConfig(clips=ClipConfig(min_s=1)))
    stage.open()
    try:
        source = source_of(two_scenes)
        stage.one(source)
    finally:
        stage.close()
    assert storage.rows_table(source.clips, CLIPS).equals(storage.rows_table(result.clips, CLIPS))
    assert source.row["cut_frames"] == [60] and source.series is not None and source.frames
    cost = source.costs["measure"]
    assert cost.cpu_s > 0 and cost.peak_mb > 10 and cost.bytes == two_scenes.stat().st_size


def test_a_file_that_breaks_off_is_measured_as_far_as_it_goes(two_scenes: Path, tmp_path: Path) -> None:
    row = row_of(two_scenes)
    broken = tmp_path / "broken.mp4"
    content = two_scenes.read_bytes()
    at = content.index(b"mdat") + len(content) // 3
    broken.write_bytes(content[:at] + bytes(2000) + content[at + 2000 :])
    found = measure(str(broken), row, MeasureConfig(clips=ClipConfig(min_s=1)), LIMITS)
    assert 0 < found.row_updates["frames"] <= 108
    assert found.clips


def test_the_network_is_refused_at_the_start_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"reelset\[shots\]"):
        Measure(LIMITS, MeasureConfig(shots=ShotConfig(detector="transnetv2")))


def test_unknown_settings_are_refused() -> None:
    for model in (MeasureConfig, ShotConfig, ClipConfig, FramesConfig):
        with pytest.raises(ValidationError, match="Extra inputs"):
            model.model_validate({"treshold": 3})


def test_kept_frames_are_spread_and_hold_the_middle() -> None:
    assert choose(range(0, 400, 12), (100, 300), 3) == [132, 204, 264]
    assert choose([120, 130], (100, 300), 3) == [120, 130]
    assert choose([], (100, 300), 3) == []
    for count in (2, 3, 4):
        chosen = choose(range(0, 400, 12), (100, 300), count)
        assert len(chosen) == count and 204 in chosen


def test_a_rotated_file_is_kept_upright(tmp_path: Path) -> None:
    landscape = cv2.rotate(np.ascontiguousarray(pan(texture(1, 240, 640), 1, 0.0)[0]), cv2.ROTATE_90_COUNTERCLOCKWISE)
    path = write(tmp_path / "turned.mp4", [landscape] * 30)
    row = row_of(path) | {"rotation": 90, "width": landscape.shape[0], "height": landscape.shape[1]}
    found = measure(str(path), row, MeasureConfig(clips=ClipConfig(min_s=1)), LIMITS)
    size = Image.open(io.BytesIO(found.frames[0]["jpeg"])).size
    assert size == (row["width"], row["height"])


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (64, 640), (98, 18)])
def test_any_size_is_measured(size: tuple[int, int], tmp_path: Path) -> None:
    pictures = [cv2.resize(p, size[::-1]) for p in pan(texture(1, 120, 400), 30, 2.0)]
    found = measured(write(tmp_path / "a.mp4", pictures), MeasureConfig(clips=ClipConfig(min_s=0.2)))
    assert found.clips and all(c["motion_vmaf"] is not None for c in found.clips)
