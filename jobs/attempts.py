"""What was being worked on when a worker died, so that a source that kills every worker is given up, and no other.

Ray starts a dead actor again and gives it the same unit, for ever. A unit leaves a mark in the run folder while it is
worked on; a worker that finds the mark of its own driver knows that the one before it died there. From then on it notes
each source it begins, and a source at which workers died `TRIES` times becomes an error row. The deaths of a driver do
not count: its next run begins afresh.
"""

import json
from collections.abc import Iterator
from typing import Any

from curation import storage
from curation.errors import SourceError, StageError
from curation.stage import Source

TRIES = 3
WRITE = "(writing the unit)"


class Attempts:
    """The mark of one unit in one pool."""

    def __init__(self, run: str, name: str, driver: str) -> None:
        self.place = storage.join(run, "attempts", f"{name}.json")
        self.driver = driver

    def guard(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Pass the sources of a unit on, one begun after the other is done; one that killed too often as an error row."""
        deaths = self._deaths()
        if deaths is None:
            self._mark({}, None)
            yield from sources
            return
        for source in sources:
            name = source.row["source_id"]
            if deaths.get(name, 0) >= TRIES:
                source.fail(SourceError("worker_died", f"{TRIES} workers died at this source"))
            elif source.live:
                self._mark(deaths, name)
            yield source
        if deaths.get(WRITE, 0) >= TRIES:
            raise StageError("stage_failed", f"{TRIES} workers died as they wrote the unit {self.place!r}")
        self._mark(deaths, WRITE)

    def done(self) -> None:
        """The unit is committed: its mark goes."""
        storage.remove(self.place)

    def _deaths(self) -> dict[str, int] | None:
        """How many workers died at each source under this driver; None where none died at the unit."""
        try:
            mark: dict[str, Any] = json.loads(storage.read_bytes(self.place))
        except FileNotFoundError:
            return None
        if mark["driver"] != self.driver:
            return None
        deaths: dict[str, int] = mark["deaths"]
        if mark["source"] is not None:
            deaths[mark["source"]] = deaths.get(mark["source"], 0) + 1
        return deaths

    def _mark(self, deaths: dict[str, int], source: str | None) -> None:
        storage.write_bytes(self.place, json.dumps({"driver": self.driver, "deaths": deaths, "source": source}).encode())
