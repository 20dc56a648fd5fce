"""`reelset review`: serve the page until Ctrl-C, and export what was decided now and then, and at the end."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation import run_folder, storage
from curation.errors import ConfigError, ReelsetError
from curation.review import by_clip
from curation.rules import SubsetConfig
from jobs.config import Config, resolve
from jobs.inspect import subsets
from jobs.review.candidates import Candidates
from jobs.review.guard import checked
from jobs.review.store import Store, default_place, export, served_alone, summary
from jobs.review.wishes import Wish, targets

EVERY = 20
"""Decisions after which they are exported."""
EVERY_S = 60.0
"""Seconds after which they are, were they fewer."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    allow_remote: bool = False
    names: tuple[str, ...] = ()
    """More names that the server goes by."""
    concepts: Path | None = None
    quota: int = 50
    store: str | None = None
    """Where the decisions are kept, instead of in the run folder; needed where that is no folder of this machine."""


def serve(run: str, subset: str, options: Options, say: Say) -> None:
    """Serve the page. Raises ConfigError before anything is served where the run, the subset or the options will not do."""
    chosen, config = _subset(run, subset)
    guard = checked(options.host, options.port, options.token, options.allow_remote, options.names)
    wanted = targets(options.concepts) if options.concepts else None
    try:
        import uvicorn

        from jobs.review.app import make
        from jobs.review.desk import Desk
        from jobs.review.preview import Previews
    except ImportError as error:
        raise ConfigError(f"the review page needs a package: pip install 'reelset[review]' ({error})") from error
    assert chosen.review is not None
    place = _place(run, subset, options.store)
    with served_alone(place), _opened(Store(place, subset, chosen.review)) as store:
        candidates = Candidates(run, store, storage.scratch() / "candidates.sqlite", wanted, options.quota)
        total = sum(candidates.tally(Wish(None)).values())
        if not total:
            say(f"no candidates: the rules of {subset!r} leave no clip that a sample can be made of")
        previews = Previews(run, config.limits, storage.scratch() / "previews")
        exporter = Exporter(run, store, say)
        try:
            app = make(Desk(run, candidates, previews, chosen.bucket_class), guard, exporter.decided)
            host = f"[{options.host}]" if ":" in options.host else options.host
            entry = f"/?token={options.token}" if options.token else "/"
            say(f"review: {total} candidates of {subset!r} at http://{host}:{options.port}{entry}")
            uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False, server_header=False)
        finally:
            exporter.close()
            previews.close()


def write(run: str, subset: str, store: str | None, say: Say) -> None:
    """Export the decisions without serving, and say where things stand. Raises ConfigError where there is no store."""
    chosen, _ = _subset(run, subset)
    assert chosen.review is not None
    place = _place(run, subset, store)
    if not storage.exists(place):
        raise ConfigError(f"nobody has reviewed {subset!r}: there is no {place!r}")
    with _opened(Store(place, subset, chosen.review)) as opened:
        rows = export(run, opened)
        found = summary(list(by_clip(opened.history()).values()), chosen.review)
    stand = ", ".join(
        f"{n} {reason.removeprefix('unselected:').replace('_', ' ')}" for reason, n in found["reasons"].items() if n
    )
    say(f"review: {rows} decisions exported to review/{subset}.parquet: {stand or 'nothing stands'}")
    for clip_id in found["conflicts"]:
        say(f"  conflict: {clip_id}")


class Exporter:
    """Exports what was decided, in a thread of its own."""

    def __init__(self, run: str, store: Store, say: Say) -> None:
        self.run, self.store, self.say = run, store, say
        self.new, self.at = 0, time.monotonic()
        self.wake, self.ending = threading.Event(), False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def decided(self) -> None:
        """A decision was taken."""
        self.new += 1
        if self.new >= EVERY:
            self.wake.set()

    def close(self) -> None:
        """Export what there is."""
        self.ending = True
        self.wake.set()
        self.thread.join()
        if self.store.history():
            export(self.run, self.store)

    def _work(self) -> None:
        while not self.ending:
            self.wake.wait(EVERY_S)
            self.wake.clear()
            if self.new and not self.ending:
                taken = self.new
                try:
                    export(self.run, self.store)
                    self.new -= taken
                except (OSError, ReelsetError) as error:  # the decisions are in the store: the next export has them
                    self.say(f"review: not exported: {error}")


@contextlib.contextmanager
def _opened(store: Store) -> Iterator[Store]:
    try:
        yield store
    finally:
        store.close()


def _subset(run: str, name: str) -> tuple[SubsetConfig, Config]:
    """A run's rule list that people pick from, and the run's settings. Raises ConfigError."""
    page: dict[str, Any] = run_folder.read(run)
    found = {subset.name: subset for subset in subsets(run)}
    if name not in found:
        have = ", ".join(found) or "none"
        raise ConfigError(f"{run!r} was decided with {have}, not with {name!r}: run `reelset select RUN --rules {name}` first")
    if found[name].review is None:
        raise ConfigError(f"{name!r} takes all that its rules leave: give its list a `review:` section to have people pick")
    if not storage.names(storage.join(run, "selection", name), ".parquet"):
        raise ConfigError(f"{run!r} has no candidates of {name!r} yet: run `reelset select RUN` first")
    return found[name], resolve({k: v for k, v in page["config"].items() if k != "input"})


def _place(run: str, subset: str, store: str | None) -> str:
    if store is None and storage.is_remote(run):
        raise ConfigError(
            f"{run!r} is not on this machine: say with --store FILE where decisions are kept until they are exported"
        )
    return store or str(storage.local_path(default_place(run, subset)))
