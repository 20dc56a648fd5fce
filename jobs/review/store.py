"""Where decisions are kept: one SQLite file, to whose history rows are only ever added, in one transaction each."""

import contextlib
import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curation import review, storage
from curation.errors import ConfigError, ReelsetError
from curation.review import ReviewConfig, Row
from curation.tables import REVIEWS

LISTS = ("shots", "subjects", "actions", "visible_text")
"""Columns that are lists, kept as JSON."""
KEPT_FOR_ONE = 120.0
"""Seconds that a clip is kept for the person who has it open; the page asks again while it is."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS about (subset TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, judgement TEXT NOT NULL UNIQUE, clip_id TEXT NOT NULL, who TEXT NOT NULL,
    at TEXT NOT NULL, action TEXT NOT NULL, reason TEXT, undoes TEXT UNIQUE, settles INTEGER NOT NULL DEFAULT 0, concept TEXT,
    start_frame INTEGER, end_frame INTEGER, start_s REAL, end_s REAL, camera TEXT, shots TEXT, caption TEXT,
    subjects TEXT, actions TEXT, setting TEXT, lighting TEXT, style TEXT, people TEXT, visible_text TEXT);
CREATE INDEX IF NOT EXISTS history_clip ON history (clip_id, seq);
CREATE INDEX IF NOT EXISTS history_who ON history (who, seq);
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history is never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_loss BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is never changed'); END;
CREATE TABLE IF NOT EXISTS leases (clip_id TEXT PRIMARY KEY, who TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS grown (concept TEXT, clip_id TEXT, similarity REAL, PRIMARY KEY (concept, clip_id));
"""


class Refused(ReelsetError):
    """A decision that cannot be taken now, in words for the person who made it."""


@dataclass(frozen=True)
class Decision:
    """What a person says of a clip. `judgement` is its name, given by the page: sent twice, it is taken once."""

    judgement: str
    clip_id: str
    who: str
    action: str
    reason: str | None = None
    concept: str | None = None
    mended: dict[str, Any] = field(default_factory=dict)
    """Of one accepted: span, camera, shots, caption and its fields, by the names of `REVIEWS`."""


def default_place(run: str, subset: str) -> str:
    """The store of a run folder on this machine."""
    return storage.join(run, "review", f"{subset}.sqlite")


class Store:
    """The history of one subset. Methods may be called from any thread; each is one transaction."""

    def __init__(self, place: str, subset: str, rule: ReviewConfig) -> None:
        """Open or make the store. Raises ConfigError where it is another subset's."""
        self.subset, self.rule, self.place = subset, rule, place
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.db = sqlite3.connect(place, check_same_thread=False, isolation_level=None, timeout=30)
        self.db.row_factory = sqlite3.Row
        # FULL: a committed decision survives the machine, not only the process.
        self.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + SCHEMA)
        with self.transaction():
            own = self.db.execute("SELECT subset FROM about").fetchone()
            if own is None:
                self.db.execute("INSERT INTO about VALUES (?)", [subset])
            elif own["subset"] != subset:
                raise ConfigError(f"{place!r} has the reviews of {own['subset']!r}, not of {subset!r}")

    def close(self) -> None:
        """Close the file; what was decided is in it."""
        with self.lock:
            self.db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of a block or nothing of it."""
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def history(self, clip_id: str | None = None) -> list[Row]:
        """Rows of `REVIEWS`, in order: of one clip, or all."""
        where, values = ("WHERE clip_id = ?", [clip_id]) if clip_id is not None else ("", [])
        with self.lock:
            found = self.db.execute(f"SELECT * FROM history {where} ORDER BY seq", values).fetchall()
        return [_row(row, self.subset) for row in found]

    def verdict(self, clip_id: str) -> review.Verdict:
        """Where a clip stands."""
        return review.verdict(self.history(clip_id), self.rule)

    def add(self, decision: Decision) -> Row:
        """Add a decision inside the caller's transaction; the same sent again is given back as it stands.

        Raises Refused where somebody else has the clip open, and where the name is that of a decision that says another thing
        or was undone.
        """
        row: Row = {
            "judgement": decision.judgement,
            "clip_id": decision.clip_id,
            "who": decision.who,
            "action": decision.action,
        }
        row |= {"reason": decision.reason, "concept": decision.concept, **decision.mended}
        known = self._named(decision.judgement)
        if known is None:
            if (other := self.lease(decision.clip_id, decision.who)) is not None:
                raise Refused(f"{other} has this clip open")
            stands = self.verdict(decision.clip_id)
            settles = stands.reason == review.CONFLICT or any(one["settles"] for one in stands.standing)
            self._insert(row | {"settles": settles and decision.action in ("accept", "reject")})
            self.db.execute("DELETE FROM leases WHERE clip_id = ? AND who = ?", [decision.clip_id, decision.who])
            known = self._named(decision.judgement)
        elif self._undone(decision.judgement) or any(known[name] != value for name, value in _kept(row).items()):
            # Its answer was lost, and the person went on: what they see now must not pass for what was saved.
            raise Refused("your decision was saved as you first sent it, and you went on since: decide again to save this one")
        return _row(known, self.subset)

    def _named(self, judgement: str) -> Any:
        return self.db.execute("SELECT * FROM history WHERE judgement = ?", [judgement]).fetchone()

    def _undone(self, judgement: str) -> bool:
        return self.db.execute("SELECT 1 FROM history WHERE undoes = ?", [judgement]).fetchone() is not None

    def undo(self, who: str, name: str) -> Row:
        """Take back the last decision of a person that stands, inside the caller's transaction. Raises Refused."""
        again = self.db.execute("SELECT undoes FROM history WHERE judgement = ? AND action = 'undo'", [name]).fetchone()
        if again is not None:
            return _row(self.db.execute("SELECT * FROM history WHERE judgement = ?", [again["undoes"]]).fetchone(), self.subset)
        last = self.last(who)
        if last is None:
            raise Refused("there is nothing of yours to undo")
        self._insert({"judgement": name, "clip_id": last["clip_id"], "who": who, "action": "undo", "undoes": last["judgement"]})
        return last

    def last(self, who: str) -> Row | None:
        """The last decision of a person that stands."""
        query = """SELECT * FROM history h WHERE who = ? AND action <> 'undo'
                   AND NOT EXISTS (SELECT 1 FROM history u WHERE u.undoes = h.judgement) ORDER BY seq DESC LIMIT 1"""
        with self.lock:
            found = self.db.execute(query, [who]).fetchone()
        return _row(found, self.subset) if found is not None else None

    def _insert(self, row: Row) -> None:
        kept = _kept(row) | {"at": datetime.now(UTC).isoformat()}
        names = ", ".join(kept)
        self.db.execute(f"INSERT INTO history ({names}) VALUES ({', '.join('?' * len(kept))})", list(kept.values()))

    def lease(self, clip_id: str, who: str) -> str | None:
        """Keep a clip for a person, inside the caller's transaction; the one who has it already, where another does."""
        now = time.time()
        held = self.db.execute("SELECT who FROM leases WHERE clip_id = ? AND until > ? AND who <> ?", [clip_id, now, who])
        if (other := held.fetchone()) is not None:
            return str(other["who"])
        self.db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", [clip_id, who, now + KEPT_FOR_ONE])
        return None

    def release(self, clip_id: str, who: str) -> None:
        """Give a clip free that a person left without a decision."""
        with self.transaction():
            self.db.execute("DELETE FROM leases WHERE clip_id = ? AND who = ?", [clip_id, who])


def _kept(row: Row) -> Row:
    return {name: json.dumps(value) if name in LISTS else value for name, value in row.items()}


def _row(found: sqlite3.Row, subset: str) -> Row:
    row = {**dict(found), "subset": subset, "settles": bool(found["settles"]), "at": datetime.fromisoformat(found["at"])}
    row |= {name: json.loads(row[name]) if row[name] is not None else None for name in LISTS}
    return {name: row[name] for name in REVIEWS.names}


@contextlib.contextmanager
def served_alone(place: str) -> Iterator[None]:
    """One server at a time on a store. Raises ConfigError for the second."""
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{place}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{place!r} is served by another process of this machine") from error
        yield


def export(run: str, store: Store) -> int:
    """Write the history as `review/<subset>.parquet`: whole or not at all, the same rows as the same bytes. Rows written."""
    rows = store.history()
    storage.write_table(review.place(run, store.subset), storage.rows_table(rows, REVIEWS))
    return len(rows)


def refresh(run: str, subset: str, rule: ReviewConfig) -> None:
    """Export what the run folder's own store holds; nothing where there is none."""
    place = default_place(run, subset)
    if storage.is_remote(run) or not storage.exists(place):
        return
    store = Store(str(storage.local_path(place)), subset, rule)
    try:
        export(run, store)
    finally:
        store.close()


def summary(histories: Sequence[Sequence[Row]], rule: ReviewConfig) -> dict[str, Any]:
    """Counts of verdicts, conflicts, and how far people agree on clips that two judged, each for themselves."""
    verdicts = [review.verdict(rows, rule) for rows in histories]
    apart = [review.standing([row for row in rows if not row["settles"]])[:2] for rows in histories]
    pairs = [pair for pair in apart if len(pair) > 1]
    same = [a["action"] == b["action"] for a, b in pairs]
    spans = [review.overlap(a, b) for a, b in pairs if a["action"] == b["action"] == "accept"]
    accepts = sum(row["action"] == "accept" for pair in pairs for row in pair) / (2 * len(pairs)) if pairs else 0.0
    chance = accepts**2 + (1 - accepts) ** 2
    agreed = sum(same) / len(pairs) if pairs else None
    return {
        "reasons": {reason: sum(v.reason == reason for v in verdicts) for reason in (review.KEPT, *review.REASONS)},
        "conflicts": [v.standing[0]["clip_id"] for v in verdicts if v.reason == review.CONFLICT],
        "twice": len(pairs),
        "agreed": agreed,
        "pi": (agreed - chance) / (1 - chance) if agreed is not None and chance < 1 else None,
        "overlap": sum(spans) / len(spans) if spans else None,
    }
