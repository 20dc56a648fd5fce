"""What is played: a small film of every frame of a clip, cut from its source when it is first asked for.

A sample of a shard would not do: it has not every frame of the clip, and shows only a part of its length and picture.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import storage
from curation.child import Child
from curation.errors import SourceError
from curation.media import MediaLimits, decode, decode_at, rgb

if TYPE_CHECKING:
    import av

SIDE_PX = 640
"""The longer side of a preview."""
TICKS = 90_000
KEYINT = 12
"""Frames from keyframe to keyframe: a drag on the timeline shows its frame at once."""
OPTIONS = {"crf": "24", "preset": "superfast", "tune": "fastdecode"}
MOST_BYTES = 4 << 30
"""Previews that are kept at a time; the oldest go first."""


class Previews:
    """Previews of a run's clips, kept in a folder. Decoding happens in a killable child, one clip at a time."""

    def __init__(self, run: str, limits: MediaLimits, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.child = Child(limits)
        self.limits = limits
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Stop the child."""
        self.child.close()

    def film(self, clip: dict[str, Any], times: Sequence[float]) -> Path:
        """The preview of a clip whose frames stand at `times`. Raises SourceError or StageError where none can be made."""
        place = self.folder / f"{clip['clip_id']}.mp4"
        with self.lock:
            if not place.exists():
                draft = place.with_name(f"_{place.name}")
                with storage.local_copy(_url(self.run, clip["unit"], clip["path"])) as path:
                    self.child.call(cut, str(path), clip, list(times), self.limits, str(draft))
                draft.replace(place)
                self._make_room(place)
        return place

    def _make_room(self, newest: Path) -> None:
        files = sorted((p for p in self.folder.glob("*.mp4") if p != newest), key=lambda p: p.stat().st_mtime)
        whole = sum(p.stat().st_size for p in files)
        for file in files:
            if whole <= MOST_BYTES:
                return
            whole -= file.stat().st_size
            file.unlink()


def _url(run: str, unit: str, path: str) -> str:
    with storage.open_read(storage.join(run, "units", f"{unit}.parquet")) as file:
        found = pq.read_table(file, columns=["url"], filters=pc.field("path") == path)["url"].to_pylist()
    assert found, f"{path} is in no unit {unit}"
    return str(found[0])


def cut(path: str, clip: dict[str, Any], times: Sequence[float], limits: MediaLimits, place: str) -> None:
    """Write the frames of a clip as an mp4, each at its own time. Raises SourceError where the source has not all of them."""
    with decode_at(path, limits, times) as pictures:
        done = _write(pictures, clip, times, place)
    if done < len(times):
        with decode(path, limits) as frames:
            span = itertools.islice(frames, clip["start_frame"], clip["end_frame"])
            done = _write((frame.picture for frame in span), clip, times, place)
    if done < len(times):
        raise SourceError("decode_failed", f"{done} of the clip's {len(times)} frames came out of the source")


def _write(pictures: "Iterator[av.VideoFrame]", clip: dict[str, Any], times: Sequence[float], place: str) -> int:
    """How many pictures were written, one for each of `times`."""
    import av

    scale = min(1.0, SIDE_PX / max(clip["width"], clip["height"]))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (clip["width"], clip["height"]))
    done = 0
    with av.open(place, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(clip["fps"] or 25).limit_denominator(1001), options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, TICKS), KEYINT
        stream.codec_context.max_b_frames = 0
        for time_s, decoded in zip(times, pictures, strict=False):
            picture = av.VideoFrame.from_ndarray(rgb(decoded, width, height, clip["rotation"] or 0), format="rgb24")
            picture.pts, picture.time_base = round((time_s - times[0]) * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(picture))
            done += 1
        container.mux(stream.encode(None))
    return done
