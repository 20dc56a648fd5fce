"""How a clip is shown to a model: parts of a chat message."""

import base64
import contextlib
import io
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.config import ModelConfig

if TYPE_CHECKING:
    import av

MEDIA = {"video": "video/mp4", "image": "image/webp"}
SUFFIX = {"video": "mp4", "image": "webp"}


@dataclass(frozen=True)
class Clip:
    """A clip that shall have a caption."""

    clip_id: str
    kind: str
    """`video` or `image`."""
    read: Callable[[], bytes]
    """Gives its file, an mp4 or a webp. Called in a thread, when its turn has come."""


@contextlib.contextmanager
def shown(clip: Clip, model: ModelConfig, frames: int | None, folder: str | None) -> Iterator[list[dict[str, Any]]]:
    """Parts of a message that show a clip as the model wants it, with `frames` pictures of it; valid inside the context.

    With `frames` None a video is shown whole: its server takes what it wants of it. With `sends: file` the clip stands in
    `folder` meanwhile, which the server may read.
    """
    data = clip.read()
    if clip.kind == "video" and frames is not None:
        if model.sends == "frames":
            yield [_part("image", _inline("image/jpeg", _jpeg(picture))) for picture in pictures(data, frames)]
            return
        data = thinned(data, frames)
    if model.sends != "file":
        yield [_part(clip.kind, _inline(MEDIA[clip.kind], data))]
        return
    assert folder is not None, "checked at the start"
    # A name of its own: two models, or a job and its successor, may show the same clip at once.
    file = Path(folder) / f"{clip.clip_id}-{uuid.uuid4().hex[:8]}.{SUFFIX[clip.kind]}"
    file.write_bytes(data)
    try:
        yield [_part(clip.kind, file.absolute().as_uri())]
    finally:
        file.unlink(missing_ok=True)


def _part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _inline(media: str, data: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _jpeg(picture: "av.VideoFrame") -> bytes:
    file = io.BytesIO()
    image = picture.to_image()  # type: ignore[no-untyped-call]
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def pictures(data: bytes, count: int) -> list["av.VideoFrame"]:
    """At most `count` pictures of an mp4 that we cut, spread evenly, each from the middle of its part."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        wanted = {(2 * i + 1) * stream.frames // (2 * count) for i in range(count)}
        return [frame for index, frame in enumerate(container.decode(stream)) if index in wanted]


def thinned(data: bytes, count: int) -> bytes:
    """An mp4 that we cut with only `count` of its pictures, in the same time.

    Servers do not let a request choose how many pictures are taken of a video unless they are told to trust it.
    """
    import av

    few, out = pictures(data, count), io.BytesIO()
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        rate = (stream.average_rate or Fraction(16)) * len(few) / stream.frames
    with av.open(out, "w", format="mp4") as container:
        added = container.add_stream("libx264", rate=rate.limit_denominator(10_000), options={"crf": "18", "threads": "1"})
        added.width, added.height, added.pix_fmt = few[0].width, few[0].height, "yuv420p"
        for number, picture in enumerate(few):
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(added.encode(picture))
        container.mux(added.encode(None))
    return out.getvalue()
