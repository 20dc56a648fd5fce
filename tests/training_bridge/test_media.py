"""Pixels: the right frames, the right place, and the right colours from cut to decode to what is written."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from bucketing.buckets import Bucket, Choice
from bucketing.cut import Cut, EncodeConfig, Turn, cut_image, cut_video
from tests.bucketing.samples import LIMITS
from tests.media_samples import make_video, number_of, texture
from tests.training_bridge.samples import FRAMES, STILL, WIDE, media
from training_bridge.index import Shape
from training_bridge.media import MediaError, decode_image, decode_video, write_video
from training_bridge.view import Window

COLOURS = (
    ((220, 30, 40), (30, 190, 60), (40, 50, 210), (240, 220, 30)),
    ((20, 20, 20), (235, 235, 235), (128, 128, 128), (190, 90, 160)),
)


def chart(width: int, height: int) -> np.ndarray:
    """Four by two patches of known colours."""
    patches = np.array(COLOURS, np.uint8)
    return patches.repeat(height // 2, axis=0).repeat(width // 4, axis=1)


def seen(pixels: np.ndarray) -> np.ndarray:
    """The colour in the middle of each patch of the first frame of (3, T, H, W)."""
    _, _, height, width = pixels.shape
    rows, columns = [height // 4, height * 3 // 4], [width * (2 * n + 1) // 8 for n in range(4)]
    return pixels[:, 0][:, rows][:, :, columns].reshape(3, 8).T.astype(int)


def off(pixels: np.ndarray) -> int:
    """By how much the worst patch is off."""
    return int(abs(seen(pixels) - np.array(COLOURS).reshape(8, 3)).max())


def numbers(pixels: np.ndarray) -> list[int]:
    return [number_of(frame.transpose(1, 2, 0)) for frame in pixels.transpose(1, 0, 2, 3)]


def test_all_frames_or_a_window_of_them(tmp_path: Path) -> None:
    data = media(WIDE, 3, tmp_path)
    whole = decode_video(data, WIDE)
    assert whole.shape == (3, 24, 48, 72) and numbers(whole) == [3 * FRAMES + n for n in range(24)]
    for start, frames in ((0, 1), (0, 24), (7, 2), (8, 8), (13, 11), (23, 1)):
        part = decode_video(data, WIDE, Window(start, frames, 0, 0, 72, 48, 48, 72))
        assert np.array_equal(part, whole[:, start : start + frames]), "the frames of a window are those of the whole"


def test_a_window_is_decoded_from_the_keyframe_before_it_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training_bridge import media as module

    decoded = []
    between = module._between

    def watched(pictures, ticks, window):  # type: ignore[no-untyped-def]
        return between((decoded.append(round(p.pts / ticks)) or p for p in pictures), ticks, window)

    monkeypatch.setattr(module, "_between", watched)
    decode_video(media(WIDE, 3, tmp_path), WIDE, Window(18, 2, 0, 0, 72, 48, 48, 72))
    assert decoded == [16, 17, 18, 19]


def test_a_rectangle_is_cropped_and_resized() -> None:
    picture = texture(96, 64, cell=16)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    stored = Shape(1, 64, 96)
    assert np.array_equal(decode_image(out.getvalue(), stored)[:, 0], picture.transpose(2, 0, 1)), "whole: exactly"
    crop = decode_image(out.getvalue(), stored, Window(0, 1, 10, 6, 32, 24, 24, 32))[:, 0]
    assert np.array_equal(crop, picture[6:30, 10:42].transpose(2, 0, 1))
    half = decode_image(out.getvalue(), stored, Window(0, 1, 0, 0, 96, 64, 32, 48))[:, 0].astype(float)
    means = picture.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert abs(half - means)[:, 2:-2, 2:-2].mean() < 2


@pytest.mark.parametrize("height", [300, 720])
def test_colours_stay_from_cut_to_decode(tmp_path: Path, height: int) -> None:
    """Sources without tags are BT.601 below 720 lines, as players have it; shards are BT.709 whatever the source is."""
    picture, frames = chart(height * 4 // 3, height), 8
    path = tmp_path / "source.mp4"
    if height < 720:
        make_video(path, lambda n: picture, frames, fps=30)
    else:
        write_video(path, np.stack([picture] * frames), 30)
    size = (picture.shape[1], height)
    choice = Choice(Bucket(256, "4x3", frames), "", None, (0, 0, *size), Fraction(30), frames / 30)
    cut = Cut("k", 0, frames, np.arange(frames) / 30, frames / 30, choice)
    made = cut_video(str(path), [cut], Turn(*size, 0), EncodeConfig(preset="ultrafast"), LIMITS, str(tmp_path))[0]
    assert made.file is not None, made.error_message
    data, stored = Path(made.file).read_bytes(), Shape(frames, 224, 288)
    assert off(decode_video(data, stored)) <= 3
    assert off(decode_video(data, stored, Window(4, 2, 0, 0, 288, 224, 112, 144))) <= 3
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))
        other = frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray()
    assert off(other.transpose(2, 0, 1)[:, None]) > 15, "this chart tells BT.601 from BT.709"


def test_colours_of_images_stay(tmp_path: Path) -> None:
    Image.fromarray(chart(400, 300)).save(tmp_path / "i.png")
    choice = Choice(Bucket(256, "4x3", 1), "", None, (0, 0, 400, 300))
    cut = Cut("k", 0, 1, np.zeros(1), 0.0, choice)
    made = cut_image(str(tmp_path / "i.png"), [cut], EncodeConfig(), LIMITS, str(tmp_path))[0]
    assert made.file is not None
    assert off(decode_image(Path(made.file).read_bytes(), Shape(1, 224, 288))) <= 4


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "sampled.mp4"
    frames = np.stack([np.roll(chart(96, 64), n, axis=1) for n in range(10)])
    write_video(path, frames, 24000 / 1001)
    back = decode_video(path.read_bytes(), Shape(10, 64, 96))
    assert off(back) <= 3
    assert abs(back.transpose(1, 2, 3, 0).astype(int) - frames).mean() < 4, "every frame, but for the halved colours at edges"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        code = stream.codec_context
        assert stream.average_rate == Fraction(24000, 1001) and code.pix_fmt == "yuv420p"
        assert (code.color_range, code.colorspace, code.color_primaries, code.color_trc) == (1, 1, 1, 1)
    for shape in ((0, 64, 96, 3), (2, 63, 96, 3)):
        with pytest.raises(ValueError, match="at least one frame and even sides, not "):
            write_video(path, np.zeros(shape, np.uint8), 24)


def test_what_is_not_the_sample_is_said(tmp_path: Path) -> None:
    data = media(WIDE, 0, tmp_path)
    with pytest.raises(MediaError, match=r"the video is 24x48x72; the index says 25x48x72"):
        decode_video(data, Shape(25, 48, 72))
    with pytest.raises(MediaError, match="no video: InvalidDataError"):
        decode_video(b"no video at all" * 100, WIDE)
    cut_short = data[: data.index(b"mdat") + 600]
    with pytest.raises(MediaError):
        decode_video(cut_short, WIDE)
    picture = media(STILL, 0, tmp_path)
    with pytest.raises(MediaError, match=r"the picture is 1x48x72; the index says 1x48x80"):
        decode_image(picture, Shape(1, 48, 80))
    with pytest.raises(MediaError, match="no picture: "):
        decode_image(picture[: len(picture) // 2], STILL)
    with pytest.raises(MediaError, match="no picture: UnidentifiedImageError"):
        decode_image(b"no picture", STILL)
