import os
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from curation.errors import SourceError
from curation.media import MediaLimits, decode, luma, open_image, probe, rgb
from tests.media_samples import make_sound, make_video, moving, number_of, numbered, rotate, texture

LIMITS = MediaLimits()


def code_of(path: Path, limits: MediaLimits = LIMITS) -> str:
    """The error code of probing and decoding a file, or `ok`."""
    try:
        probe(str(path), limits)
        with decode(str(path), limits) as frames:
            for _ in frames:
                pass
    except SourceError as error:
        return error.code
    return "ok"


def numbers(path: Path) -> list[int]:
    with decode(str(path), LIMITS) as frames:
        return [number_of(luma(f.picture)) for f in frames]


def test_probe_of_an_ordinary_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a b ü.mp4", moving(320, 180), 50, 25, sound=True)
    found = probe(str(path), LIMITS)
    assert found == {
        "kind": "video",
        "container": "mov",
        "video_codec": "h264",
        "audio_codec": "aac",
        "duration_s": pytest.approx(2.0),
        "fps": 25.0,
        "is_vfr": False,
        "frames_declared": 50,
        "width": 320,
        "height": 180,
        "rotation": 0,
        "pixel_aspect": 1.0,
        "interlaced": False,
        "bit_depth": 8,
        "hdr": False,
        "full_range": False,
    }


@pytest.mark.parametrize("name,codec", [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_every_frame_once_in_display_order(tmp_path: Path, name: str, codec: str) -> None:
    options = {"bf": "3", "b_strategy": "0"} if codec == "libx264" else {}
    path = make_video(tmp_path / name, numbered(192, 96), 60, codec=codec, options=options)
    assert numbers(path) == list(range(60))


def test_times_start_at_zero_and_follow_a_variable_rate(tmp_path: Path) -> None:
    times = [5.0 + t for t in (0, 0.04, 0.08, 0.5, 0.54, 1.2)]
    path = make_video(tmp_path / "v.mkv", numbered(192, 96), 6, times=times)
    with decode(str(path), LIMITS) as frames:
        found = [f.time_s for f in frames]
    assert found == pytest.approx([0, 0.04, 0.08, 0.5, 0.54, 1.2], abs=0.002)
    assert probe(str(path), LIMITS)["is_vfr"]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_reported_and_undone(tmp_path: Path, degrees: int) -> None:
    shown = np.zeros((96, 160, 3), np.uint8)
    shown[:48, :80] = 255  # white at the upper left when upright
    stored = np.ascontiguousarray(np.rot90(shown, k=degrees // 90))
    path = rotate(make_video(tmp_path / "r.mp4", lambda n: stored, 5), degrees)
    found = probe(str(path), LIMITS)
    assert (found["rotation"], found["width"], found["height"]) == (degrees, 160, 96)
    with decode(str(path), LIMITS) as frames:
        picture = rgb(next(iter(frames)).picture, 160, 96, degrees)
    assert picture.shape == (96, 160, 3)
    assert picture[20, 30].min() > 200 and picture[70, 30].max() < 50 and picture[20, 120].max() < 50


def test_pixel_aspect_is_applied(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", moving(180, 144), 5, aspect=Fraction(16, 11))
    found = probe(str(path), LIMITS)
    assert (found["width"], found["height"]) == (262, 144)
    assert found["pixel_aspect"] == pytest.approx(16 / 11)


@pytest.mark.parametrize(
    "column,value,make",
    [
        ("bit_depth", 10, {"pix_fmt": "yuv420p10le"}),
        ("hdr", True, {"transfer": 16, "pix_fmt": "yuv420p10le"}),
        ("hdr", True, {"transfer": 18}),
        ("full_range", True, {"pix_fmt": "yuvj420p"}),
        ("interlaced", True, {"options": {"x264-params": "tff=1"}}),
    ],
)
def test_unusual_material_is_named(tmp_path: Path, column: str, value: object, make: dict[str, object]) -> None:
    path = make_video(tmp_path / "a.mkv", moving(160, 96), 5, **make)  # type: ignore[arg-type]
    assert probe(str(path), LIMITS)[column] == value


def test_deep_and_odd_pictures_have_eight_bit_luma(tmp_path: Path) -> None:
    deep = make_video(tmp_path / "d.mkv", numbered(192, 96), 3, pix_fmt="yuv420p10le")
    odd = make_video(tmp_path / "o.mkv", numbered(191, 97), 3, codec="ffv1", pix_fmt="yuv444p")
    assert numbers(deep) == numbers(odd) == [0, 1, 2]
    with decode(str(odd), LIMITS) as frames:
        assert luma(next(iter(frames)).picture).shape == (97, 191)


def test_what_cannot_be_read_has_a_code(tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", moving(160, 96), 30)
    data = good.read_bytes()
    moov = data.index(b"moov") - 4
    files = {
        "empty": b"",
        "not_media": b"dear diary, " * 50,
        "bad_header": data[:moov],
        "unsupported_format": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/x.ts\n",
    }
    for code, content in files.items():
        path = tmp_path / f"{code}.mp4"
        path.write_bytes(content)
        assert code_of(path) == code
    (tmp_path / "list.mp4").write_bytes(b"ffconcat version 1.0\nfile good.mp4\n")
    assert code_of(tmp_path / "list.mp4") == "unsupported_format"
    assert code_of(make_sound(tmp_path / "s.mp4")) == "no_video_stream"
    assert code_of(tmp_path / "gone.mp4") == "missing"
    assert code_of(tmp_path) == "unreadable"
    os.mkfifo(tmp_path / "pipe.mp4")
    assert code_of(tmp_path / "pipe.mp4") == "unreadable"


def test_damage_inside_costs_frames_and_not_the_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", moving(320, 180), 60, options={"g": "10"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4000
    rng = np.random.default_rng(0)
    for at in rng.integers(start, data.index(b"moov") - 8, 300):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with decode(str(path), LIMITS) as frames:
        count = sum(1 for _ in frames)
    assert 20 <= count <= 60


def test_no_frame_at_all_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", moving(160, 96), 20)
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    assert code_of(path) in ("decode_failed", "zero_frames")


@pytest.mark.parametrize(
    "limit,code",
    [({"max_bytes": 100}, "too_large"), ({"max_pixels": 1000}, "too_large"), ({"max_duration_s": 0.5}, "too_long")],
)
def test_limits_are_errors_before_decoding(tmp_path: Path, limit: dict[str, float], code: str) -> None:
    path = make_video(tmp_path / "a.mp4", moving(160, 96), 30)
    assert code_of(path, MediaLimits(**limit)) == code  # type: ignore[arg-type]


def test_a_frame_count_above_the_limit_stops_decoding(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", moving(160, 96), 30)
    with pytest.raises(SourceError) as caught, decode(str(path), MediaLimits(max_frames=10)) as frames:
        for _ in frames:
            pass
    assert caught.value.code == "too_long"


def test_a_single_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "one.mp4", numbered(192, 96), 1)
    assert numbers(path) == [0]
    assert probe(str(path), LIMITS)["frames_declared"] == 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_images(tmp_path: Path, name: str) -> None:
    from PIL import Image

    picture = texture(200, 100)
    Image.fromarray(picture).save(tmp_path / name)
    found = probe(str(tmp_path / name), LIMITS)
    assert (found["kind"], found["width"], found["height"]) == ("image", 200, 100)
    assert np.abs(open_image(str(tmp_path / name), LIMITS).astype(int) - picture).mean() < 12


def test_an_image_is_turned_by_its_exif_and_laid_over_white(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(texture(200, 100)).save(tmp_path / "r.jpg", exif=exif)
    found = probe(str(tmp_path / "r.jpg"), LIMITS)
    assert (found["rotation"], found["width"], found["height"]) == (90, 100, 200)
    assert open_image(str(tmp_path / "r.jpg"), LIMITS).shape == (200, 100, 3)
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "t.png")
    assert open_image(str(tmp_path / "t.png"), LIMITS).min() == 255


def test_a_bomb_of_an_image_is_refused_unopened(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (100_000).to_bytes(4, "big")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    assert code_of(tmp_path / "bomb.png") == "too_large"
