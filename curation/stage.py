"""What travels between the stages of *analyze*, and what a stage is."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from curation.child import Child
from curation.errors import SourceError, StageError


@dataclass
class Cost:
    """What one stage spent on one source. `peak_mb` is the largest resident size seen, children included."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    bytes: int = 0
    peak_mb: float = 0.0

    @contextlib.contextmanager
    def of(self, child: Child) -> Iterator[None]:
        """Adds what the one call to `child` inside costs, also where it fails."""
        try:
            yield
        finally:
            self.cpu_s += child.usage.cpu_s
            self.peak_mb = max(self.peak_mb, child.usage.peak_mb)


@dataclass
class Source:
    """One source on its way through *analyze*: its row of `sources`, its clips, and what is kept of its pixels.

    `row` has the columns of `tables.SOURCES` (and the manifest's extra columns), `clips` those of `tables.CLIPS`,
    `series` those of `tables.SERIES`, `frames` those of `tables.FRAMES`. `url` is what to open. No raw pixel and no
    open file ever travels in it. `skip` is set where every requested subset's source rules stop it: it is not decoded.
    """

    unit: str
    url: str
    row: dict[str, Any]
    skip: bool = False
    clips: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, Any] | None = None
    frames: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """True while later stages should still work on this source."""
        return not self.skip and self.row["status"] != "error"

    def fail(self, error: SourceError) -> None:
        """Turn this source into an error row; what was measured so far of its clips is dropped with it."""
        self.row |= {"status": "error", "error_code": error.code, "error_message": error.message[:2000]}
        self.clips, self.series, self.frames = [], None, []


class Stage:
    """Maps sources to sources. Subclasses give `name`, `open` for weights, and `one`, the work on a single source.

    A stage raises a `SourceError` or marks clips; it does not count, log statistics, or know about Ray. It is picklable
    before `open`.
    """

    name: str = ""
    gpus: float = 0.0

    def open(self) -> None:
        """Load weights and start child processes. Called once in the process that works."""

    def close(self) -> None:
        """Stop what `open` started."""

    def one(self, source: Source) -> None:
        """Work on one live source, in place."""
        raise NotImplementedError

    def rows(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Work on a stream of sources, one at a time; rows that are not live pass untouched."""
        for source in sources:
            if source.live:
                cost = source.costs.setdefault(self.name, Cost())
                wall, cpu = time.perf_counter(), time.process_time()
                try:
                    self.one(source)
                except SourceError as error:
                    source.fail(error)
                except StageError:  # the machine or a store is at fault: another run finds the source as it was
                    raise
                except Exception as error:  # the one place where a task's failure becomes a recorded row
                    source.fail(SourceError("internal", f"{self.name}: {type(error).__name__}: {error}"))
                cost.wall_s += time.perf_counter() - wall
                cost.cpu_s += time.process_time() - cpu
            yield source
