"""The text scorer, with real OCR on pictures whose text and motion the tests made."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from curation.errors import ConfigError
from curation.stage import Source
from filters.overlay import Box, Overlays
from filters.text import COLUMNS, Reader, ReadText, TextConfig, check, distinct, pictures, score

Picture = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 480, 270
LOWER_THIRD = (240, 235)
ASIDE = (300, 110)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(TextConfig())


def world(seed: int = 3) -> Picture:
    """A coloured texture, twice the frame's size each way: what a camera pans over. Soft blobs; nothing like letters."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(40, 180, (34, 60, 3), dtype=np.uint8), (2 * WIDTH, 2 * HEIGHT), interpolation=2)
    grain = rng.integers(-12, 13, (2 * HEIGHT, 2 * WIDTH, 1), dtype=np.int16)
    return np.clip(coarse.astype(np.int16) + grain, 0, 255).astype(np.uint8)


def view(picture: Picture, x: int, y: int = 60) -> Picture:
    """The frame that a camera pointed at (x, y) sees."""
    return picture[y : y + HEIGHT, x : x + WIDTH].copy()


def write(picture: Picture, words: str, centre: tuple[int, int], size: int = 26, fill: str = "white") -> Picture:
    """Text with a thin dark outline, its middle at `centre`."""
    image = Image.fromarray(picture)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(centre, words, fill, font, anchor="mm", stroke_width=1, stroke_fill="black")
    return np.asarray(image)


def jpegs(frames: Sequence[Picture]) -> list[bytes]:
    return [cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for frame in frames]


def scores(frames: Sequence[Picture], reader: Reader) -> dict[str, float]:
    return score(jpegs(frames), reader, 640)


def pan(words: str = "", at: tuple[int, int] = LOWER_THIRD) -> list[Picture]:
    """A pan of three frames, with words overlaid."""
    return [write(view(world(), x), words, at) if words else view(world(), x) for x in (40, 140, 240)]


def moving_sign() -> list[Picture]:
    """The same pan over a world with a sign in it."""
    signed = write(world(), "BAKERY OPEN", (460, 190), 30)
    return [view(signed, x) for x in (140, 170, 200)]


def test_overlay_over_a_pan(reader: Reader) -> None:
    found = scores(pan("breaking news today"), reader)
    assert found["text_score"] >= 0.6
    assert found["text_scene_score"] < 0.3
    left, top, right, bottom = ImageFont.load_default(26).getbbox("breaking news today")
    truth = (right - left) * (bottom - top) / (WIDTH * HEIGHT)
    assert 0.7 * truth < found["text_area_frac"] < 2 * truth


def test_overlay_in_an_unusual_place_over_a_pan(reader: Reader) -> None:
    assert scores(pan("level four", ASIDE), reader)["text_score"] >= 0.6


def test_sign_that_moves_with_the_scene(reader: Reader) -> None:
    found = scores(moving_sign(), reader)
    assert found["text_scene_score"] >= 0.6
    assert (found["text_score"], found["text_area_frac"]) == (0.0, 0.0)


def test_sign_that_grows_as_the_camera_zooms(reader: Reader) -> None:
    signed = write(view(world(), 140), "BAKERY OPEN", (200, 120), 30)
    zoomed = [cv2.warpAffine(signed, cv2.getRotationMatrix2D((300, 200), 0, by), (WIDTH, HEIGHT)) for by in (1.0, 1.2, 1.4)]
    found = scores(zoomed, reader)
    assert found["text_scene_score"] >= 0.6
    assert found["text_score"] < 0.3


def test_sign_and_overlay_are_told_apart(reader: Reader) -> None:
    frames = [write(frame, "see you tomorrow", LOWER_THIRD) for frame in moving_sign()]
    found = scores(frames, reader)
    assert found["text_score"] >= 0.6
    assert found["text_scene_score"] >= 0.6


def test_no_text(reader: Reader) -> None:
    assert scores(pan(), reader) == {"text_score": 0.0, "text_scene_score": 0.0, "text_area_frac": 0.0}


def test_caption_that_comes_and_changes_over_a_still_picture(reader: Reader) -> None:
    still = view(world(), 40)
    frames = [still, write(still, "where are you going", ASIDE), write(still, "to the market", ASIDE)]
    found = scores(frames, reader)
    assert found["text_score"] >= 0.6
    assert found["text_scene_score"] < 0.3


def test_nothing_moves_typography_decides(reader: Reader) -> None:
    card = write(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "a film by nobody", (WIDTH // 2, HEIGHT // 2))
    assert scores([card, card], reader)["text_score"] >= 0.6
    tilted = cv2.warpAffine(
        write(view(world(), 40), "BAKERY", (170, 120), 34, "#b0a090"),
        cv2.getRotationMatrix2D((170, 120), 7, 1),
        (WIDTH, HEIGHT),
        borderMode=cv2.BORDER_REFLECT,
    )
    found = scores([tilted, tilted], reader)
    assert found["text_scene_score"] >= 0.6
    assert found["text_score"] == 0.0


def test_single_image_with_a_caption(reader: Reader) -> None:
    assert scores([pan("summer in the city")[0]], reader)["text_score"] >= 0.6


def test_small_frames_are_enlarged_at_most_twice() -> None:
    (small,) = pictures(jpegs([view(world(), 0)[:90, :120]]), 640)
    assert small.shape == (180, 240, 3)
    (large,) = pictures(jpegs([world()]), 640)
    assert large.shape == (360, 640, 3)


def test_same_picture_is_kept_once() -> None:
    frame = view(world(), 40)
    noisy = np.clip(frame.astype(np.int16) + np.random.default_rng(1).integers(-5, 6, frame.shape), 0, 255)
    worded = write(frame, "hi", ASIDE)
    assert len(distinct([frame, noisy.astype(np.uint8), frame])) == 1
    assert len(distinct([frame, worded, worded])) == 2


class TestOverlays:
    """The decision on its own, without OCR."""

    CORNERS = np.array([[280, 95], [340, 95], [340, 120], [280, 120]], np.float32)

    def boxes(self, *shifts: int, text: str = "KEY") -> list[Box]:
        return [Box(i, self.CORNERS + np.float32([dx, 0]), 0.9, 0.9, text) for i, dx in enumerate(shifts)]

    def gray(self, frames: Sequence[Picture]) -> list[Picture]:
        return [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames]

    def test_stays_while_the_picture_moves(self) -> None:
        frames = self.gray(pan("KEY", (310, 108)))
        boxes = self.boxes(0, 0, 0)
        assert all(Overlays(frames, boxes).is_overlaid(box) for box in boxes)

    def test_moves_with_the_picture(self) -> None:
        signed = write(world(), "KEY", (450, 168))
        frames = self.gray([view(signed, x) for x in (140, 120, 100)])
        boxes = self.boxes(0, 20, 40)
        assert not any(Overlays(frames, boxes).is_overlaid(box) for box in boxes)

    def test_word_on_a_still_photo_is_of_the_scene_wherever_it_stands(self) -> None:
        frames = self.gray([write(view(world(), 40), "KEY", (240, 108), fill="#c0c0c0")] * 2)
        boxes = self.boxes(-70, -70)
        assert not any(Overlays(frames, boxes).is_overlaid(box) for box in boxes)

    def test_faint_detection_that_flickers_is_no_overlay(self) -> None:
        frames = self.gray([view(world(), 40)] * 3)
        (box,) = self.boxes(0)
        assert not Overlays(frames, [box]).is_overlaid(box)


def source(clips: dict[str, list[bytes]]) -> Source:
    rows = [
        {"clip_id": name, "status": "ok", "error_code": None, "error_message": None, **dict.fromkeys(COLUMNS)} for name in clips
    ]
    frames = [{"clip_id": n, "frame": i, "jpeg": j} for n, given in clips.items() for i, j in enumerate(given)]
    return Source("unit", "url", {"status": "ok"}, clips=rows, frames=frames)


def run(of: Source, reader: Reader, wanted: Any = None) -> list[dict[str, Any]]:
    stage = ReadText(TextConfig(), wanted)
    stage.reader = reader
    (done,) = stage.rows(iter([of]))
    assert done.row["status"] == "ok", done.row
    assert done.costs["text"].wall_s > 0
    return done.clips


def test_stage_scores_wanted_clips_and_notes_failures(reader: Reader) -> None:
    worded, plain = jpegs(pan("breaking news today")[:2]), jpegs(pan()[:2])
    given = source({"a": worded, "b": plain, "c": worded, "d": [b"no picture"], "e": [], "f": worded})
    given.clips[5] |= {"status": "error", "error_code": "frames_missing"}
    given.frames.reverse()
    clips = {c["clip_id"]: c for c in run(given, reader, lambda source: set("abdef"))}
    assert clips["a"]["text_score"] >= 0.6
    assert clips["b"]["text_score"] == 0.0
    for name in "cdef":
        assert [clips[name][column] for column in COLUMNS] == [None] * 3
    assert {name: c["error_code"] for name, c in clips.items()} == {
        **dict.fromkeys("abc"),
        **dict.fromkeys("de", "scorer_failed"),
        "f": "frames_missing",
    }
    assert clips["d"]["error_message"] == "text: a kept frame is no readable JPEG"
    assert clips["e"]["error_message"] == "text: the clip has no kept frame"
    assert all(clips[name]["status"] == "ok" for name in "abcde")
    assert set(clips["a"]) == {"clip_id", "status", "error_code", "error_message", *COLUMNS}


def test_scores_do_not_depend_on_neighbours(reader: Reader) -> None:
    worded, sign = jpegs(pan("breaking news today")[:2]), jpegs(moving_sign()[:2])
    forth = run(source({"a": worded, "b": sign}), reader)
    back = run(source({"b": sign, "a": worded}), reader)
    assert forth == back[::-1]


def test_failing_model_costs_its_clip_only() -> None:
    from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError

    class Broken:
        def read(self, frames: Sequence[Picture]) -> list[Box]:
            raise ONNXRuntimeError("bad allocation")

    (clip,) = run(source({"a": jpegs(pan()[:1])}), Broken())  # type: ignore[arg-type]
    assert (clip["text_score"], clip["error_code"]) == (None, "scorer_failed")
    assert "bad allocation" in clip["error_message"]


def test_stage_is_picklable_before_open_and_never_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapidocr.utils.download_file import DownloadFile

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(DownloadFile, "run", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    stage = pickle.loads(pickle.dumps(ReadText(TextConfig())))
    assert (stage.name, stage.gpus, stage.reader) == ("text", 0.0, None)
    stage.open()
    (done,) = stage.rows(iter([source({"a": jpegs(pan("breaking news today")[:2])})]))
    assert done.clips[0]["text_score"] >= 0.6
    stage.close()


def test_check_names_the_setting(tmp_path: Path) -> None:
    check(TextConfig())
    check(TextConfig(enabled=False, detection_model=tmp_path / "none.onnx"))
    with pytest.raises(ConfigError, match=r"text\.recognition_model: no file .*none\.onnx"):
        check(TextConfig(recognition_model=tmp_path / "none.onnx"))


def test_check_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filters.text.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install rapidocr onnxruntime"):
        check(TextConfig())


def test_check_refuses_a_gpu_that_onnxruntime_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=r"text\.gpus: .*onnxruntime-gpu"):
        check(TextConfig(gpus=1.0))
