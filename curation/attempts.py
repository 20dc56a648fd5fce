"""What was being worked on when a worker died, so that what kills every worker is given up, and nothing else.

Ray starts a dead actor again and gives it the same item, for ever. A worker leaves a mark while it is at an item; one
that finds the mark of its own driver knows that the one before it died there. From then on each source is noted as it is
begun, and a source at which workers died `TRIES` times is given up. The deaths of a driver do not count: the next one
has its own marks.
"""

import json
from types import TracebackType
from typing import Any

from curation import storage
from curation.errors import SourceError, StageError

TRIES = 3
NO_SOURCE = ""
"""Where a worker is that is at none of its item's sources: it reads the item, or writes its tables."""


class Attempt:
    """One try at one item, as a context: its mark stands at `place` until it is done."""

    def __init__(self, place: str, what: str) -> None:
        self.place = place
        self.what = what
        self.deaths: dict[str, int] | None = None
        """How many workers died at each source; None where none died at the item."""

    def __enter__(self) -> None:
        global _current
        _current = self
        try:
            mark: dict[str, Any] = json.loads(storage.read_bytes(self.place))
        except FileNotFoundError:
            self._mark({}, None)
            return
        self.deaths = mark["deaths"]
        if mark["at"] is not None:
            self.deaths[mark["at"]] = self.deaths.get(mark["at"], 0) + 1
        self.at(NO_SOURCE)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _current
        _current = None
        if kind is None:
            storage.remove(self.place)

    def at(self, source: str) -> None:
        if self.deaths is None:
            return
        hopeless = self.deaths.get(source, 0) >= TRIES
        self._mark(self.deaths, NO_SOURCE if hopeless else source)
        if hopeless and source == NO_SOURCE:
            raise StageError("stage_failed", f"{TRIES} workers died at {self.what}, and at none of its sources")
        if hopeless:
            raise SourceError("worker_died", f"{TRIES} workers died at this source")

    def _mark(self, deaths: dict[str, int], source: str | None) -> None:
        storage.write_bytes(self.place, json.dumps({"item": self.what, "deaths": deaths, "at": source}).encode())


_current: Attempt | None = None


def at(source: str = NO_SOURCE) -> None:
    """Say which source of its item this worker is at from now on. Costs nothing where no worker died at the item.

    Raises SourceError worker_died where `TRIES` workers died at this source, and StageError where so many died at none.
    """
    if _current is not None:
        _current.at(source)
