"""The first stage: what a source is, whether it can be read at all, and whether any requested subset wants it."""

from collections.abc import Callable
from typing import Any

from curation import storage
from curation.child import Child, shared
from curation.errors import SourceError
from curation.media import MediaLimits, check_bytes, probe
from curation.sources import content_hash, source_id
from curation.stage import Source, Stage


class Probe(Stage):
    """Fills the probe columns of a source's row, gives it its ids, and applies the source rules before any decode.

    `stops(row)` is the reason why no requested subset can use the source, or None. With `score_all` a stopped source is
    marked `rejected` and measured all the same.
    """

    name = "probe"

    def __init__(self, limits: MediaLimits, stops: Callable[[dict[str, Any]], str | None], score_all: bool) -> None:
        self.limits = limits
        self.stops = stops
        self.score_all = score_all
        self.child: Child | None = None

    def open(self) -> None:
        self.child = shared(self.limits)

    def close(self) -> None:
        if self.child is not None:
            self.child.close()

    def one(self, source: Source) -> None:
        assert self.child is not None, "open() comes first"
        row = source.row
        if row["error_code"] is not None:
            raise SourceError(row["error_code"], row["error_message"])
        check_bytes(row["bytes"] or 0, self.limits)  # before it is downloaded and read for its content_id
        with storage.local_copy(source.url) as path:
            with source.costs[self.name].of(self.child):
                row["content_id"] = self.child.call(content_hash, path)
            row["source_id"] = source_id(row["path"], row["bytes"], row["content_id"])
            with source.costs[self.name].of(self.child):
                row |= self.child.call(probe, str(path), self.limits)
        source.costs[self.name].bytes += row["bytes"] or 0
        reason = f"exact_copy:{row['exact_copy_of']}" if row["exact_copy_of"] else self.stops(row)
        if reason is not None:
            row |= {"status": "rejected", "reason": reason}
            source.skip = not self.score_all
