"""How a clip is shown to a model: parts of a chat message."""

import base64
import contextlib
import io
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.config import ModelConfig

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
def shown(clip: Clip, model: ModelConfig, frames: int, folder: str | None) -> Iterator[dict[str, Any]]:
    """Fields of a request that show a clip as the model wants it, with `frames` pictures; valid inside the context.

    With `sends: file` the clip stands in `folder` meanwhile, which the server may read.
    """
    data = clip.read()
    if model.sends == "file":
        assert folder is not None, "checked at the start"
        # A name of its own: two models, or a job and its successor, may show the same clip at once.
        file = Path(folder) / f"{clip.clip_id}-{uuid.uuid4().hex[:8]}.{SUFFIX[clip.kind]}"
        file.write_bytes(data)
        try:
            yield _asked([_part(clip.kind, file.absolute().as_uri())], clip.kind, frames)
        finally:
            file.unlink(missing_ok=True)
    elif model.sends == "frames" and clip.kind == "video":
        yield {"parts": [_part("image", _inline("image/jpeg", jpeg)) for jpeg in pictures(data, frames)]}
    else:
        yield _asked([_part(clip.kind, _inline(MEDIA[clip.kind], data))], clip.kind, frames)


def _asked(parts: list[dict[str, Any]], kind: str, frames: int) -> dict[str, Any]:
    """A video with how many of its frames are to be looked at, as vLLM takes it."""
    return {"parts": parts} | ({"media_io_kwargs": {"video": {"num_frames": frames}}} if kind == "video" else {})


def _part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _inline(media: str, data: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def pictures(data: bytes, count: int) -> list[bytes]:
    """At most `count` JPEGs of an mp4 that we cut, spread evenly, each at the middle of its part."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        total = stream.frames
        wanted = {(2 * i + 1) * total // (2 * count) for i in range(count)}
        found = []
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                file = io.BytesIO()
                picture = frame.to_image()  # type: ignore[no-untyped-call]
                picture.save(file, "JPEG", quality=90)
                found.append(file.getvalue())
    return found
