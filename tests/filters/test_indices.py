"""Cut frames are indices of decoded frames in display order, whatever the container does to them.

Every frame says its own number in a strip along its top; a file's truth is read from the frames it gives.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.media import MediaLimits, decode, probe
from curation.tables import SOURCES
from filters.measure import MeasureConfig, Measured, measure
from tests.filters.synthetic import pan, texture
from tests.media_samples import make_video, number_of, numbered, start_later

LIMITS = MediaLimits()
WIDTH, HEIGHT, STRIP = 192, 144, 12
SHOT, FRAMES = 30, 120
"""Frames of a shot, and of a film: cuts at 30, 60 and 90."""

Rgb = np.ndarray[Any, np.dtype[np.uint8]]


def film(seed: int = 0) -> Callable[[int], Rgb]:
    """Frame `n` of a film of four shots."""
    shots = [p for i in range(FRAMES // SHOT) for p in pan(texture(seed + i, HEIGHT, WIDTH * 2), SHOT, 0.5)]
    number = numbered(WIDTH, STRIP)

    def picture(n: int) -> Rgb:
        out = np.ascontiguousarray(shots[n][:, :WIDTH])
        out[:STRIP] = 96 + number(n) // 4  # of little contrast: it is no part of the shots
        return out

    return picture


FILM = film()


def numbers(path: Path) -> tuple[list[int], list[float]]:
    """What each decoded frame says, and its time."""
    with decode(str(path), LIMITS) as frames:
        told = [(number_of(f.picture.to_ndarray(format="gray")[:STRIP]), f.time_s) for f in frames]
    return [n for n, _ in told], [t for _, t in told]


def measured(path: Path) -> Measured:
    row: dict[str, Any] = dict.fromkeys(SOURCES.names)
    row |= {"source_id": "0" * 16, "path": path.name, "bytes": path.stat().st_size, "status": "ok"}
    return measure(str(path), row | probe(str(path), LIMITS), MeasureConfig(), LIMITS)


def first_of_shots(told: Sequence[int]) -> list[int]:
    """Where a frame is of another shot than the frame before it."""
    return [i for i in range(1, len(told)) if told[i] // SHOT != told[i - 1] // SHOT]


def check(path: Path, told: Sequence[int], time_s: Sequence[float], within_s: float = 0.0015) -> None:
    """The file gives the frames `told` at `time_s`, and `measure` names the first frames of its shots and their times."""
    assert numbers(path)[0] == list(told)
    found = measured(path).row_updates
    cuts = first_of_shots(told)
    assert len(cuts) == 3
    assert found["cut_frames"] == cuts and found["gradual"] == []
    assert found["frames"] == len(told)
    assert found["cut_times_s"] == pytest.approx([time_s[c] for c in cuts], abs=within_s)


SHORT_GOPS = {"g": "10", "bf": "0", "qmin": "2", "qmax": "4"}
B_FRAMES = {"g": "24", "bf": "3", "b_strategy": "0", "b-pyramid": "normal"}


@pytest.mark.parametrize(("suffix", "within_s"), [("mp4", 0.0015), ("mkv", 0.0015), ("ts", 0.0015), ("avi", 0.05)])
def test_b_frames(suffix: str, within_s: float, tmp_path: Path) -> None:
    """An AVI has no times of display: those of its frames are right within a frame or two only."""
    path = make_video(tmp_path / f"a.{suffix}", FILM, FRAMES, 24, options=B_FRAMES)
    check(path, range(FRAMES), [n / 24 for n in range(FRAMES)], within_s)


def test_b_frames_with_odd_time_stamps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.round(5.017 + np.arange(FRAMES) / 24 + rng.uniform(-0.015, 0.015, FRAMES), 3)
    path = make_video(tmp_path / "a.mkv", FILM, FRAMES, 24, times=times.tolist(), options=B_FRAMES)
    check(path, range(FRAMES), (times - times[0]).tolist())


@pytest.mark.parametrize("repeats", [(3, 2), (2,), (5,)])
def test_frames_stored_more_than_once(repeats: tuple[int, ...], tmp_path: Path) -> None:
    told = [n for n in range(FRAMES) for _ in range(repeats[n % len(repeats)])]
    path = make_video(tmp_path / "a.mp4", lambda i: FILM(told[i]), len(told), 60, options=B_FRAMES)
    check(path, told, [i / 60 for i in range(len(told))])


def test_a_variable_rate(tmp_path: Path) -> None:
    times = np.cumsum(np.tile([1, 1, 3, 2], FRAMES // 4)) / 24
    path = make_video(tmp_path / "a.mp4", FILM, FRAMES, 24, times=times.tolist(), options=B_FRAMES)
    check(path, range(FRAMES), (times - times[0]).tolist(), 0.002)
    assert measured(path).row_updates["is_vfr"]


@pytest.mark.parametrize("hidden", [5, 20])
def test_an_edit_list(hidden: int, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", FILM, FRAMES, 25, options=B_FRAMES)
    start_later(path, hidden * 512)  # 12800 ticks a second
    check(path, range(hidden, FRAMES), [n / 25 for n in range(FRAMES - hidden)])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_damaged_packet(codec: str, tmp_path: Path) -> None:
    """Frames are lost or spoilt up to the next key frame; after it, indices are those of the frames that came."""
    whole = make_video(tmp_path / "whole.mkv", FILM, FRAMES, 24, codec, options=SHORT_GOPS)
    path = tmp_path / "damaged.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if n == 42:
                spoilt = av.Packet(b"\0" * 8 + np.random.default_rng(1).bytes(packet.size - 8))
                spoilt.pts, spoilt.dts, spoilt.time_base = packet.pts, packet.dts, packet.time_base
                packet = spoilt
            packet.stream = stream
            target.mux(packet)
    told, times = numbers(path)
    found = measured(path).row_updates
    assert told[:42] == list(range(42)) and told[-70:] == list(range(50, 120))
    assert found["cut_frames"] == [30, len(told) - 60, len(told) - 30]
    assert found["cut_times_s"] == pytest.approx([30 / 24, 60 / 24, 90 / 24], abs=0.002)
    assert found["frames"] == len(told) == len(times)


def test_a_lost_packet_moves_the_later_indices(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", FILM, FRAMES, 24, "mpeg4", options=SHORT_GOPS)
    path = tmp_path / "lost.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if n != 49:
                packet.stream = stream
                target.mux(packet)
    told = [n for n in range(FRAMES) if n != 49]
    check(path, told, [n / 24 for n in told], 0.002)


def test_the_first_of_two_video_streams(tmp_path: Path) -> None:
    other = film(10)
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=24) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.options = {"preset": "ultrafast", "crf": "12", **B_FRAMES}
        for n in range(FRAMES):
            for stream, picture in zip(streams, (FILM(n), other((n + 13) % FRAMES)), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    check(path, range(FRAMES), [n / 24 for n in range(FRAMES)])
