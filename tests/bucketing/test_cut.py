"""Cut: exact frames, upright, without bars, right colours, never enlarged, the same bytes from any process."""

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bucketing.buckets import choose, frame_indices
from bucketing.cut import Cut, EncodeConfig, Turn, cut_image, cut_video, stored_rect
from bucketing.shard_format import Facts
from curation.child import Child
from curation.errors import SourceError
from curation.media import Picture
from tests.bucketing.samples import CORNERS, LIMITS, barred, marked, number, pictures, planned
from tests.media_samples import make_video, rotate, texture

QUICK = EncodeConfig(preset="ultrafast", resize="area")


def one(path: Path, folder: Path, encode: EncodeConfig = QUICK, **more: object) -> tuple[Cut, list[Picture]]:
    """Cut a whole file and read the sample back."""
    cut, turn = planned(path, **more)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    made = cut_video(str(path), [cut], turn, encode, LIMITS, str(folder))[0]
    assert made.file is not None, made.error_message
    return cut, pictures(Path(made.file))


def corner(picture: Picture, where: str) -> Picture:
    """The median colour near a corner."""
    height, width = picture.shape[:2]
    y = height // 8 if "upper" in where else -height // 8
    x = width // 8 if "left" in where else -width // 8
    return np.median(picture[y - 4 : y + 4, x - 4 : x + 4].reshape(-1, 3), axis=0)  # type: ignore[return-value]


def blocks(picture: Picture) -> NDArray[np.float64]:
    """Means of an 8 x 8 grid of blocks."""
    rows = np.array_split(picture, 8)
    return np.array([[part.mean() for part in np.array_split(row, 8, axis=1)] for row in rows])


def test_the_planned_frames_come_out_at_the_planned_rate(tmp_path: Path) -> None:
    import av

    path = make_video(tmp_path / "a.mp4", marked(336, 192), 200, fps=30)
    cut, turn = planned(path, start=20, end=170)  # 5 s: 128 of 150 frames
    made = cut_video(str(path), [cut], turn, QUICK, LIMITS, str(tmp_path))[0]
    assert made.file is not None and made.shown is not None
    wanted = 20 + frame_indices(cut.time_s, cut.end_s, cut.choice)
    assert [number(p) for p in pictures(Path(made.file))] == wanted.tolist()
    assert (made.shown.first_frame, made.shown.last_frame) == (wanted[0], wanted[-1]) == (20, 169)
    assert made.shown.off_s <= 0.5 / 30 + 1e-3
    with av.open(made.file) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == cut.choice.fps == Fraction(128, 5)
        assert stream.frames == 128 and float(stream.duration * stream.time_base) == pytest.approx(5.0)
        assert (stream.width, stream.height, stream.pix_fmt) == (336, 192, "yuv420p")
        assert not container.streams.audio
        code = stream.codec_context
        assert (code.color_range, code.colorspace, code.color_primaries, code.color_trc) == (1, 1, 1, 1)
        packets = [p for p in container.demux(stream) if p.pts is not None]
        keys = sorted(round(p.pts * stream.time_base * cut.choice.fps) for p in packets if p.is_keyframe)
    assert keys == [0, 32, 64, 96]
    data = Path(made.file).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_samples_stand_upright(tmp_path: Path, degrees: int) -> None:
    upright = marked(256, 460)
    path = make_video(tmp_path / "r.mp4", lambda n: np.ascontiguousarray(np.rot90(upright(n), k=degrees // 90)), 128, fps=30)
    if degrees:
        rotate(path, degrees)
    cut, found = one(path, tmp_path / "out")
    assert cut.choice.bucket is not None and cut.choice.bucket.name == "v256-9x16-f128"
    assert [number(p) for p in found] == list(range(128))
    for where, colour in CORNERS.items():
        assert corner(found[60], where) == pytest.approx(colour, abs=8)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_bars_are_not_in_the_picture(tmp_path: Path, degrees: int) -> None:
    """White bars of odd widths around a dark picture, stored upright or turned: not one bright pixel is left."""
    dark = (texture(300, 320) // 4).astype(np.uint8)
    shown = barred(lambda n: dark, 61, 3, 0, 43)(0)
    stored = np.ascontiguousarray(np.rot90(shown, k=degrees // 90))
    path = make_video(tmp_path / "b.mkv", lambda n: stored, 128, pix_fmt="yuv444p")
    cut, _ = planned(path, width=343, height=384, border_top_px=61.0, border_bottom_px=3.0, border_right_px=43.0)
    turn = Turn(343, 384, degrees)
    made = cut_video(str(path), [cut], turn, QUICK, LIMITS, str(tmp_path))[0]
    assert made.file is not None
    found = pictures(Path(made.file))[64]
    assert found.max() < 90
    x, y, wide, high = cut.choice.crop
    off = np.abs(blocks(shown[y : y + high, x : x + wide]) - blocks(found))
    assert off.max() < 4  # the whole of it, where it belongs


@pytest.mark.parametrize("size", [(854, 480), (338, 194), (418, 302), (370, 622)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = make_video(tmp_path / "o.mkv", marked(*size), 128, fps=25, pix_fmt="yuv444p")
    cut, found = one(path, tmp_path / "out")
    assert cut.choice.bucket is not None
    assert {p.shape[1::-1] for p in found} == {cut.choice.bucket.size}
    assert [number(p) for p in found] == list(range(128))


def test_odd_width_and_height(tmp_path: Path) -> None:
    path = make_video(tmp_path / "o.mkv", marked(359, 257), 128, fps=25, pix_fmt="yuv444p")
    cut, found = one(path, tmp_path / "out")
    assert cut.choice.crop[2] % 2 == cut.choice.crop[3] % 2 == 0
    assert [number(p) for p in found] == list(range(128))


def test_stretched_pixels_become_square(tmp_path: Path) -> None:
    """A circle is stored as an ellipse; the sample shows a circle."""
    import cv2

    def stored(n: int) -> Picture:
        picture = np.zeros((480, 360, 3), np.uint8)
        cv2.ellipse(picture, (180, 240), (60, 120), 0, 0, 360, (255, 255, 255), -1)
        return picture

    path = make_video(tmp_path / "s.mp4", stored, 128, fps=25, aspect=Fraction(2, 1))
    cut, found = one(path, tmp_path / "out")
    assert cut.choice.bucket is not None and cut.choice.bucket.ratio == "16x9"
    disc = found[0][:, :, 1] > 127
    assert disc.any(axis=0).sum() == pytest.approx(disc.any(axis=1).sum(), abs=3)


def test_a_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    times = (np.arange(170) / 30 + rng.uniform(0, 0.012, 170)).round(3).tolist()
    path = make_video(tmp_path / "v.mkv", marked(336, 192), 170, times=times)
    cut, found = one(path, tmp_path / "out")
    numbers = np.array([number(p) for p in found])
    assert np.diff(numbers).min() >= 1
    shown = np.array(times)[numbers] - times[numbers[0]]
    assert np.abs(shown - np.arange(128) / float(cut.choice.fps)).max() < 0.05


def test_a_hole_in_the_source_is_said(tmp_path: Path) -> None:
    times = [n / 30 + (0.9 if n >= 80 else 0) for n in range(160)]
    path = make_video(tmp_path / "h.mkv", marked(336, 192), 160, times=times)
    cut, turn = planned(path)
    made = cut_video(str(path), [cut], turn, QUICK, LIMITS, str(tmp_path))[0]
    assert (made.file, made.error_code) == (None, "frames_missing")
    assert "the source has a hole" in str(made.error_message)


def test_samples_may_overlap_and_one_failure_spoils_no_other(tmp_path: Path) -> None:
    path = make_video(tmp_path / "o.mp4", marked(1024, 576), 170, fps=30)
    spans = [(0, 130), (20, 148), (30, 170), (20, 148), (42, 170)]
    plans = [planned(path, cls, *span) for cls, span in zip((256, 256, 256, 768, 256), spans, strict=True)]
    cuts = [cut for cut, _ in plans]
    beyond = Cut("beyond", 60, 190, np.arange(60, 190) / 30, 190 / 30, cuts[0].choice)
    made = cut_video(str(path), [*cuts, beyond], plans[0][1], QUICK, LIMITS, str(tmp_path))
    assert [m.key for m in made] == [*(c.key for c in cuts), "beyond"]
    for m, (start, end) in zip(made[:-1], spans, strict=True):
        assert m.file is not None and m.shown is not None
        numbers = [number(p) for p in pictures(Path(m.file))]
        assert start <= numbers[0] < numbers[-1] < end and np.diff(numbers).min() >= 1
    assert pictures(Path(str(made[3].file)))[0].shape == (576, 1024, 3)
    assert (made[-1].file, made[-1].error_code) == (None, "frames_missing")
    assert "frames came out of the source" in str(made[-1].error_message)


@pytest.mark.parametrize(
    "pix_fmt,options",
    [
        ("yuv420p", {}),
        ("yuvj420p", {}),
        ("yuv420p10le", {}),
        ("yuv444p", {}),
        ("yuv422p", {}),
        ("yuv420p", {"colorspace": "bt709"}),
        ("yuv420p", {"colorspace": "smpte170m"}),
        ("yuvj420p", {"colorspace": "bt709"}),
    ],
)
def test_colours_are_kept(tmp_path: Path, pix_fmt: str, options: dict[str, str]) -> None:
    """Whatever matrix, range, depth and subsampling the source is stored with, a player shows the same colours."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    path = tmp_path / "c.mkv"
    matrix = Colorspace.ITU709 if options.get("colorspace") == "bt709" else Colorspace.ITU601
    ranged = ColorRange.JPEG if pix_fmt.startswith("yuvj") else ColorRange.MPEG
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 480, 400, pix_fmt
        stream.options = {"preset": "ultrafast", "crf": "4", **options}
        rgb = av.VideoFrame.from_ndarray(marked(480, 400)(0), format="rgb24")
        shown = rgb.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=ranged)
        for n in range(128):
            shown.pts = n
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    cut, turn = planned(path)
    made = cut_video(str(path), [cut], turn, EncodeConfig(preset="ultrafast", crf=4), LIMITS, str(tmp_path))[0]
    with av.open(str(made.file)) as container:
        frame = next(container.decode(video=0))
        picture = frame.to_ndarray(format="rgb24", src_colorspace=Colorspace.ITU709)
    for where, colour in CORNERS.items():
        assert corner(picture, where) == pytest.approx(colour, abs=4)


def test_hdr_and_interlaced_pictures_are_refused(tmp_path: Path) -> None:
    kinds = {"HDR": {"transfer": 16, "pix_fmt": "yuv420p10le"}, "interlaced": {"options": {"x264-params": "tff=1"}}}
    for word, how in kinds.items():
        path = make_video(tmp_path / f"{word}.mp4", marked(336, 192), 128, **how)  # type: ignore[arg-type]
        cut, turn = planned(path)
        made = cut_video(str(path), [cut], turn, QUICK, LIMITS, str(tmp_path))[0]
        assert (made.file, made.error_code) == (None, "encode_failed")
        assert word in str(made.error_message)


def test_nothing_is_enlarged_even_if_the_tables_err(tmp_path: Path) -> None:
    path = make_video(tmp_path / "s.mp4", marked(320, 180), 128)
    cut, _ = planned(path, width=640, height=360)
    made = cut_video(str(path), [cut], Turn(640, 360, 0), QUICK, LIMITS, str(tmp_path))[0]
    assert (made.file, made.error_code) == (None, "encode_failed")
    assert "would be enlarged to 336x192" in str(made.error_message)


def test_a_picture_that_changes_its_size_is_fitted_anew(tmp_path: Path) -> None:
    small, large = (make_video(tmp_path / f"{w}.h264", marked(w, h), 64) for w, h in ((384, 224), (768, 448)))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(large.read_bytes() + small.read_bytes())
    _, found = one(joined, tmp_path / "out")
    assert [number(p) for p in found] == [*range(64), *range(64)]


def test_the_same_bytes_from_another_process(tmp_path: Path) -> None:
    path = make_video(tmp_path / "d.mp4", marked(640, 360), 140, fps=30)
    cut, turn = planned(path)
    hashes = set()
    child = Child(LIMITS)
    try:
        for n, call in enumerate((lambda *a: cut_video(*a), lambda *a: child.call(cut_video, *a))):
            folder = tmp_path / str(n)
            folder.mkdir()
            made = call(str(path), [cut], turn, EncodeConfig(), LIMITS, str(folder))[0]
            hashes.add(hashlib.sha256(Path(made.file).read_bytes()).hexdigest())
    finally:
        child.close()
    assert len(hashes) == 1


def test_a_source_that_cannot_be_read_is_a_source_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "d.mp4", marked(336, 192), 128)
    cut, turn = planned(path)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        cut_video(str(path), [cut], turn, QUICK, LIMITS, str(tmp_path))


def test_images_become_webp_of_the_buckets_size(tmp_path: Path) -> None:
    from PIL import Image

    shown = barred(marked(561, 400), 20, 0, 0, 0)(5)
    Image.fromarray(shown).save(tmp_path / "i.png")
    clip = {"kind": "image", "frames": 1, "width": 561, "height": 420, "border_top_px": 20.0}
    cut = Cut("i", 0, 1, np.zeros(1), 0.0, choose(clip, 256))
    hashes = set()
    for n in range(2):
        folder = tmp_path / str(n)
        folder.mkdir()
        made = cut_image(str(tmp_path / "i.png"), [cut], EncodeConfig(), LIMITS, str(folder))[0]
        assert made.file is not None and made.file.endswith(".webp") and made.shown is not None
        hashes.add(hashlib.sha256(Path(made.file).read_bytes()).hexdigest())
    with Image.open(made.file) as image:
        found = np.asarray(image.convert("RGB"))
    assert found.shape == (224, 288, 3) and len(hashes) == 1
    assert number(found) == 5
    for where, colour in CORNERS.items():
        assert corner(found, where) == pytest.approx(colour, abs=10)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_rectangle_of_the_shown_picture_in_the_stored_one(rotation: int) -> None:
    shown = np.arange(100 * 60).reshape(60, 100)
    stored = np.rot90(shown, k=rotation // 90)
    x, y, wide, high = stored_rect((20, 10, 40, 24), Turn(100, 60, rotation), (stored.shape[1], stored.shape[0]))
    inside = np.rot90(stored[y : y + high, x : x + wide], k=-(rotation // 90))
    assert (inside == shown[10:34, 20:60]).all()


def test_facts_are_plain() -> None:
    assert vars(Facts(1, None, 256, 256)) == {"frames": 1, "fps": None, "width": 256, "height": 256}


@pytest.mark.parametrize("name", ["000000.mp4", "000000.webp"])
def test_a_full_disk_is_no_fault_of_the_sample(tmp_path: Path, name: str) -> None:
    from PIL import Image

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        if name.endswith("mp4"):
            one(make_video(tmp_path / "a.mp4", marked(336, 192), 140, fps=30), tmp_path / "out")
        else:
            Image.fromarray(marked(336, 192)(0)).save(tmp_path / "i.png")
            cut = Cut("i", 0, 1, np.zeros(1), 0.0, choose({"kind": "image", "frames": 1, "width": 336, "height": 192}, 256))
            cut_image(str(tmp_path / "i.png"), [cut], EncodeConfig(), LIMITS, str(tmp_path / "out"))
