import os
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation import media
from curation.errors import SourceError
from curation.media import Decoding, MediaLimits, _Clock, _packets, _pictures, decode, decode_at, luma, open_image, probe, rgb
from tests.media_samples import (
    make_sound,
    make_sound_with_cover,
    make_video,
    moving,
    number_of,
    numbered,
    rotate,
    start_later,
    texture,
)

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


SOUGHT: list[tuple[str, str, dict[str, str]]] = [
    ("ordered.mp4", "libx264", {"preset": "fast", "bf": "3", "g": "40"}),
    ("open.mkv", "libx264", {"preset": "fast", "bf": "3", "g": "40", "x264-params": "open-gop=1"}),
    ("old.mpg", "mpeg2video", {"g": "15", "bf": "2"}),
    ("stream.ts", "libx264", {"preset": "fast", "bf": "3", "g": "40"}),
    ("one.mp4", "libx264", {"g": "1000", "sc_threshold": "0"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), SOUGHT)
def test_frames_that_are_sought_are_those_of_the_whole(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    make = numbered(192, 64)
    path = make_video(tmp_path / name, make, 200, 25, codec, options=options)
    with decode(str(path), LIMITS) as frames:
        whole = [(frame.time_s, luma(frame.picture)) for frame in frames]
    assert len(whole) == 200
    for start, end in ((0, 3), (79, 83), (80, 85), (81, 121), (150, 200)):
        span = whole[start:end]
        with decode_at(str(path), LIMITS, [time_s for time_s, _ in span]) as pictures:
            found = [luma(picture) for picture in pictures]
        assert len(found) == len(span), (start, end)
        assert all(np.array_equal(ours, theirs) for ours, (_, theirs) in zip(found, span, strict=True)), (start, end)


def test_seeking_passes_over_what_lies_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "long.mp4", numbered(192, 64), 1000, 25, options={"g": "25"})
    decoded = 0

    def counted(*given: Any) -> Any:
        nonlocal decoded
        for picture in _pictures(*given):
            decoded += 1
            yield picture

    monkeypatch.setattr(media, "_pictures", counted)
    with decode_at(str(path), LIMITS, [n / 25 for n in range(900, 950)]) as pictures:
        assert [number_of(luma(picture)) for picture in pictures] == list(range(900, 950))
    assert decoded <= 1 + 50 + 25 + 25, "the first frame, the span, the margin and the way from the keyframe"


def test_frames_that_cannot_be_sought_end_early(tmp_path: Path) -> None:
    make = numbered(192, 64)
    raw = make_video(tmp_path / "raw.h264", make, 100, 25)
    with decode_at(str(raw), LIMITS, [n / 25 for n in range(50, 60)]) as pictures:
        assert list(pictures) == []
    path = make_video(tmp_path / "fine.mp4", make, 100, 25, options={"g": "10"})
    with decode_at(str(path), LIMITS, [2.0, 2.04, 2.1, 2.14]) as pictures:
        assert [number_of(luma(picture)) for picture in pictures] == [50, 51], "no frame stands at 2.1 s"
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][52]
        assert packet.pos is not None
    data[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    path.write_bytes(data)
    with decode_at(str(path), LIMITS, [n / 25 for n in range(50, 60)]) as pictures:
        assert [number_of(luma(picture)) for picture in pictures] in ([50], [50, 51])


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


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no_video_stream: streams: audio, cover picture"):
        probe(str(make_sound_with_cover(tmp_path / "a.mp4")), LIMITS)


def test_an_unknown_codec_has_a_code(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", moving(160, 96), 5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert code_of(path) == "no_decoder"


def test_frames_outside_the_edit_list_do_not_come(tmp_path: Path) -> None:
    options = {"g": "12", "bf": "2", "b_strategy": "0"}
    path = make_video(tmp_path / "a.mp4", numbered(192, 96), 60, options=options)
    start_later(path, 20 * 512)  # 12800 ticks a second
    assert numbers(path) == list(range(20, 60))
    with decode(str(path), LIMITS) as frames:
        assert next(iter(frames)).time_s == 0.0


FOREIGN = {
    "playlist": (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/passwd\n", "unsupported_format"),
    "manifest": (b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "unsupported_format"),
    "photo": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "unsupported_format"),
    "session": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n", "not_media"),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\n00:00:03,000 --> 00:00:04,000\nHi\n", "not_media"),
    "noise": (np.random.default_rng(0).bytes(5000), "not_media"),
    "matroska": (b"\x1aE\xdf\xa3" + bytes(300), "bad_header"),
    "avi": (b"RIFF\x10\0\0\0AVI " + bytes(300), "bad_header"),
    "huge": (b"YUV4MPEG2 W20000 H20000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000), "bad_header"),
    "wide": (b"YUV4MPEG2 W16 H16 F25:1 Ip A9999:1 C420\n" + (b"FRAME\n" + bytes(384)) * 3, "bad_header"),
    "frameless": (b"YUV4MPEG2 W16 H16 F25:1 Ip A1:1 C420\n", "zero_frames"),
    "cut jpeg": (b"\xff\xd8\xff\xe0" + bytes(6), "bad_header"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_and_broken_content_has_the_right_code(tmp_path: Path, name: str) -> None:
    content, code = FOREIGN[name]
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert code_of(path) == code


def test_odd_names_never_reach_the_library(tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", numbered(192, 96), 3)
    for name in (b"a %03d.mp4", b"concat:x|y.mp4", b"http:a.mp4", b"two\nlines.mp4", b"caf\xe9.mp4"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(good.read_bytes())
        assert numbers(path) == [0, 1, 2]
    with pytest.raises(SourceError, match="missing"):
        probe("a\0b.mp4", LIMITS)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_a_cut_off_file_gives_the_frames_that_are_there(tmp_path: Path, name: str) -> None:
    path = make_video(tmp_path / name, numbered(192, 96), 60, options={"bf": "2", "b_strategy": "0"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with decode(str(path), LIMITS) as frames:
        found = [number_of(luma(f.picture)) for f in frames]
    assert 10 < len(found) < 60
    assert found[:-3] == list(range(len(found) - 3))  # the last ones may lack what they refer to


def test_frames_given_in_spite_of_damage_are_counted(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", moving(320, 180), 60, options={"g": "60"})
    with decode(str(path), LIMITS) as whole:
        assert sum(1 for _ in whole) == 60
    assert whole.errors == 0
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    for at in np.random.default_rng(1).integers(start + (end - start) // 2, end, 200):
        data[at] ^= 0x55
    path.write_bytes(data)
    with decode(str(path), LIMITS) as damaged:
        count = sum(1 for _ in damaged)
    assert count > 30 and damaged.errors > 0


def test_a_reader_that_breaks_off_still_gives_what_the_decoder_holds(tmp_path: Path) -> None:
    import av

    class Breaking:
        """A container whose reading fails for good after 30 packets."""

        def __init__(self, container: Any) -> None:
            self.packets = container.demux(video=0)
            self.given = 0

        def demux(self, _: object) -> Any:
            while self.given < 30:
                self.given += 1
                yield next(self.packets)
            raise av.error.InvalidDataError(1, "broken")

    path = make_video(tmp_path / "a.mp4", numbered(192, 96), 60, options={"bf": "3", "b_strategy": "0"})
    with av.open(str(path)) as container:
        stream, decoding = container.streams.video[0], Decoding()
        found = list(_pictures(_packets(Breaking(container), stream, decoding), decoding))  # type: ignore[arg-type]
    assert len(found) == 30
    assert decoding.errors == 100 and len(decoding.notes) == 3


def test_a_stream_that_begins_later_is_passed_over(tmp_path: Path) -> None:
    """PyAV's demuxer raises IndexError, where memory happens to be so, at a packet of a stream that was not there at first."""
    import av

    class Growing:
        """A container that does so once, after ten packets."""

        def __init__(self, container: Any) -> None:
            self.packets = container.demux(video=0)
            self.begun = 0

        def demux(self, _: object) -> Any:
            self.begun += 1
            for given, packet in enumerate(self.packets, 1):
                yield packet
                if self.begun == 1 and given == 10:
                    raise IndexError("list index out of range")

    path = make_video(tmp_path / "a.ts", numbered(192, 96), 60, codec="mpeg2video")
    with av.open(str(path)) as container:
        stream, decoding = container.streams.video[0], Decoding()
        found = list(_pictures(_packets(Growing(container), stream, decoding), decoding))  # type: ignore[arg-type]
    assert len(found) == 60 and decoding.errors == 0


def test_storage_that_fails_while_reading_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mkv", moving(320, 180), 200)
    whole = path.stat().st_size
    real = Path.open

    class Failing:
        def __init__(self, file: Any) -> None:
            self.file, self.seek, self.tell = file, file.seek, file.tell

        def read(self, n: int = -1) -> bytes:
            if self.file.tell() > whole // 2:
                raise OSError(5, "Input/output error")
            return self.file.read(min(n, 4096))  # type: ignore[no-any-return]

        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = real(self, *args, **kwargs)
        return Failing(file) if kwargs.get("buffering") == 0 else file

    monkeypatch.setattr(Path, "open", opened)
    assert code_of(path) == "read_failed"


def test_a_header_that_sends_the_reader_before_the_beginning_is_damage(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.wmv", moving(96, 64), 10, codec="wmv2")
    data = bytearray(path.read_bytes())
    data[30:54] = bytes(16) + (2**62).to_bytes(8, "little")  # the header's first object: of no known type, and so large
    path.write_bytes(data)
    assert code_of(path) == "bad_header"


def test_the_clock_never_runs_back() -> None:
    def times(*told: int | None) -> list[float]:
        clock = _Clock(Fraction(1, 100), 10.0)
        return [clock.tell(t) for t in told]

    assert times(500, 510, 520) == pytest.approx([0, 0.1, 0.2])
    assert times(None, 510, None, 530) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert times(0, 10, 10, 20, 30) == pytest.approx([0, 0.1, 0.1, 0.2, 0.3])  # one twice: no lasting shift
    assert times(0, 10, 5, 20) == pytest.approx([0, 0.1, 0.1, 0.2])
    assert times(9000, 9010, 0, 10) == pytest.approx([0, 0.1, 0.2, 0.3])  # the clock starts anew
    assert times(0, 10, 9_000_000, 9_000_010) == pytest.approx([0, 0.1, 0.2, 0.3])


def solid(pix_fmt: str, yuv: tuple[int, int, int], matrix: int, color_range: int, size: tuple[int, int]) -> Any:
    import av

    frame = av.VideoFrame(*size, pix_fmt)
    deep = "10" in pix_fmt
    for plane, value in zip(frame.planes, yuv, strict=True):
        shape = (plane.height, plane.line_size // (1 + deep))
        plane.update(np.full(shape, value << 2 * deep, np.uint16 if deep else np.uint8).tobytes())
    frame.colorspace, frame.color_range = matrix, color_range
    return frame


@pytest.mark.parametrize(
    "pix_fmt,yuv,matrix,color_range",
    [
        ("yuv420p", (63, 102, 240), 1, 1),  # BT.709
        ("yuv420p", (81, 90, 240), 5, 1),  # BT.601
        ("yuv420p", (76, 85, 255), 5, 2),  # full range
        ("yuvj420p", (76, 85, 255), 5, 2),
        ("yuv420p10le", (63, 102, 240), 1, 1),
        ("yuv420p", (81, 90, 240), 2, 0),  # says nothing: a small picture is BT.601
        ("yuv420p", (81, 90, 240), 14, 1),  # a matrix that libswscale refuses
    ],
)
def test_red_is_red(pix_fmt: str, yuv: tuple[int, int, int], matrix: int, color_range: int) -> None:
    for size in ((64, 48), (33, 25)):
        picture = rgb(solid(pix_fmt, yuv, matrix, color_range, (65, 49)), *size, 0)
        assert picture.shape == (size[1], size[0], 3)
        assert np.abs(picture.astype(int) - (255, 0, 0)).max() <= 4


def test_luma_of_ten_bits_loses_its_lowest_two() -> None:
    import av

    frame = av.VideoFrame(64, 48, "yuv420p10le")
    stored = np.random.default_rng(0).integers(0, 1024, (48, 64), dtype=np.uint16)
    frame.planes[0].update(np.pad(stored, ((0, 0), (0, frame.planes[0].line_size // 2 - 64))).tobytes())
    assert np.array_equal(luma(frame), stored >> 2)


def test_grey_of_sixteen_bits_is_not_clipped(tmp_path: Path) -> None:
    from PIL import Image

    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert probe(str(tmp_path / "a.png"), LIMITS)["bit_depth"] == 16
    assert np.array_equal(open_image(str(tmp_path / "a.png"), LIMITS)[:, :, 1], deep >> 8)


def test_damaged_images_have_codes_and_damaged_exif_is_none(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(texture(200, 100)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    assert probe(str(tmp_path / "half.jpg"), LIMITS)["width"] == 200
    with pytest.raises(SourceError, match="decode_failed"):
        open_image(str(tmp_path / "half.jpg"), LIMITS)
    Image.fromarray(texture(200, 100)).save(tmp_path / "e.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert probe(str(tmp_path / "e.jpg"), LIMITS)["rotation"] == 0
    assert open_image(str(tmp_path / "e.jpg"), LIMITS).shape == (100, 200, 3)


VIDEOS = Path(os.environ.get("REELSET_VIDEOS") or Path(__file__).parents[3] / "shared" / "videos")
CODES_OF_REAL_FILES = {
    "derived_corrupt_no_moov.mp4": "bad_header",
    "derived_corrupt_text_as.mp4": "not_media",
    "moviepy_audio_only.mp4": "no_video_stream",
    "moviepy_zero_bytes.webm": "empty",
    "mp4parse_chunk_out_of_range.mp4": "bad_header",
    "mp4parse_invalid_userdata.mp4": "zero_frames",
    "mp4parse_test_case_1185230.mp4": "decode_failed",
    "derived_corrupt_truncated50.mkv": "ok",
    "decord_corrupted.mp4": "ok",
}


@pytest.mark.parametrize("name", CODES_OF_REAL_FILES)
def test_damaged_files_of_the_labelled_set(name: str) -> None:
    if not (VIDEOS / name).exists():
        pytest.skip("the labelled videos are not here (REELSET_VIDEOS)")
    assert code_of(VIDEOS / name) == CODES_OF_REAL_FILES[name]
