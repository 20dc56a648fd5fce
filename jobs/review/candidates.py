"""What there is to decide about: the clips that a subset's rules leave, beside the store and made anew at each start.

The table is a second SQLite file that the store's connection attaches. It is only a shadow of the run folder's tables and of
the history: losing it costs seconds. Pages are read by key, never by offset, so the last is as near as the first.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from captioning.answers import FIELDS
from curation import review
from curation.review import Row
from curation.select import draw_sql
from curation.tables import CLIP_SCORES, CLIPS
from jobs.inspect import connect
from jobs.review.store import Decision, Refused, Store, summary
from jobs.review.wishes import VERDICTS, Target, Wish
from jobs.search import search

FACTS = (*(name for name in CLIPS.names if name not in ("error_code", "error_message")), "unit", "cluster", "draw", "caption")
"""Columns of a candidate that come from the run folder's tables; `draw` is its place in a shuffled order."""
BESIDE = ("fields", "words", "pixel_aspect", "rotation", "near")
"""More of them that no order goes by: the caption's fields as JSON, what words are looked for in, the source's shape, and the
cosine to the centre of the clip's own concept."""
NEAR = "JOIN (SELECT clip_id AS near_id, similarity FROM cache.members WHERE concept = ?) near ON near_id = c.clip_id"
FOUND = 500
"""Clips that one search by text or likeness puts in a queue."""
GROWN = 50
SEEDS = 64
"""Accepted clips of a concept whose mean its neighbours are looked for around, the latest."""
TEXT = ("clip_id", "source_id", "path", "kind", "status", "camera", "camera_code", "unit", "draw", "caption")


class Candidates:
    """The candidates of a run's subset over an open store. Methods may be called from any thread."""

    def __init__(self, run: str, store: Store, place: Path, wanted: Sequence[Target] | None, quota: int) -> None:
        """Read the run folder's tables into `place`. `wanted` None: the run's own concepts, each of `quota` clips."""
        self.run, self.store, self.wanted = run, store, wanted
        self.db = store.db
        for name, function in {"least": _of(min), "greatest": _of(max), "concat": lambda *v: "".join(v), "chr": chr}.items():
            self.db.create_function(name, -1, function, deterministic=True)
        self.db.execute("ATTACH ? AS cache", [str(place)])
        self.db.executescript("PRAGMA cache.synchronous = OFF; PRAGMA cache.journal_mode = MEMORY;")
        with store.transaction():
            self._fill(quota)
            self._stand()

    def _fill(self, quota: int) -> None:
        columns = ", ".join(f"{n} {'TEXT' if n in TEXT else 'REAL' if n in CLIP_SCORES else 'NUMERIC'}" for n in FACTS)
        self.db.execute(
            f"""CREATE TABLE cache.candidates ({columns},
                fields TEXT, words TEXT, pixel_aspect REAL, rotation INTEGER, near REAL, concept TEXT,
                verdict TEXT NOT NULL DEFAULT 'not_reviewed', judges INTEGER NOT NULL DEFAULT 0, taken TEXT,
                PRIMARY KEY (clip_id))"""
        )
        for table in (
            "mine (who TEXT, clip_id TEXT, state TEXT, PRIMARY KEY (who, clip_id))",
            "targets (concept TEXT PRIMARY KEY, quota INTEGER)",
            "members (concept TEXT, clip_id TEXT, similarity REAL, PRIMARY KEY (concept, clip_id))",
        ):
            self.db.execute(f"CREATE TABLE cache.{table} WITHOUT ROWID")
        for rows in _candidates(self.run, self.store.subset):
            marks = ", ".join("?" * (len(FACTS) + len(BESIDE)))
            names = ", ".join((*FACTS, *BESIDE))
            self.db.executemany(f"INSERT INTO cache.candidates ({names}) VALUES ({marks})", rows)
        if self.wanted is None:
            named = "'concept ' || cluster"
            self.db.execute(f"UPDATE cache.candidates SET concept = {named} WHERE cluster IS NOT NULL")
            self.db.execute(
                f"""INSERT INTO cache.targets SELECT DISTINCT {named}, ? FROM cache.candidates WHERE cluster IS NOT NULL""",
                [quota],
            )
            self.db.execute(
                """INSERT INTO cache.members SELECT concept, clip_id, coalesce(near, 0) FROM cache.candidates
                   WHERE concept IS NOT NULL"""
            )
        else:
            self.db.executemany("INSERT INTO cache.targets VALUES (?, ?)", [(t.name, t.quota) for t in self.wanted])
            seeds = [(t.name, clip_id, 1.0) for t in self.wanted for clip_id in t.seeds]
            self.db.executemany("INSERT OR IGNORE INTO cache.members VALUES (?, ?, ?)", seeds)
        self._join_grown()
        self.db.execute("CREATE INDEX cache.near ON members (concept, similarity, clip_id)")
        self.db.execute("CREATE INDEX cache.takes ON candidates (verdict, taken)")

    def _join_grown(self) -> None:
        """Put what concepts have grown by among their members; a clip that had no concept has the nearest of these now."""
        self.db.execute(
            """INSERT OR REPLACE INTO cache.members SELECT concept, clip_id, similarity FROM grown
               WHERE clip_id IN (SELECT clip_id FROM cache.candidates)"""
        )
        self.db.execute(
            """UPDATE cache.candidates SET concept =
                   (SELECT concept FROM cache.members m JOIN cache.targets USING (concept)
                    WHERE m.clip_id = candidates.clip_id ORDER BY similarity DESC, concept LIMIT 1)
               WHERE concept IS NULL AND clip_id IN (SELECT clip_id FROM cache.members)"""
        )

    def _stand(self) -> None:
        """Bring verdicts up to the history."""
        for clip_id, rows in review.by_clip(self.store.history()).items():
            self._note(clip_id, rows)

    def _note(self, clip_id: str, rows: Sequence[Row]) -> review.Verdict:
        found = review.verdict(rows, self.store.rule)
        taken = found.judgement["concept"] if found.judgement else None
        self.db.execute(
            "UPDATE cache.candidates SET verdict = ?, judges = ?, taken = ? WHERE clip_id = ?",
            [found.reason.removeprefix("unselected:"), len(found.standing), taken, clip_id],
        )
        undone = {row["undoes"] for row in rows}
        skips = [row["who"] for row in rows if row["action"] == "skip" and row["judgement"] not in undone]
        mine = dict.fromkeys(skips, "skipped") | {row["who"]: "judged" for row in found.standing}
        self.db.execute("DELETE FROM cache.mine WHERE clip_id = ?", [clip_id])
        self.db.executemany("INSERT INTO cache.mine VALUES (?, ?, ?)", [(who, clip_id, s) for who, s in mine.items()])
        return found

    def one(self, clip_id: str) -> Row | None:
        """A candidate; None where the clip is none."""
        with self.store.lock:
            found = self.db.execute("SELECT * FROM cache.candidates WHERE clip_id = ?", [clip_id]).fetchone()
        return _row(found) if found is not None else None

    def decide(self, decision: Decision) -> review.Verdict:
        """Take a decision. Raises Refused, with nothing changed, where it cannot be taken now."""
        with self.store.transaction():
            self.store.add(decision)
            found = self._note(decision.clip_id, self.store.history(decision.clip_id))
            if found.judgement is not None and found.judgement["judgement"] == decision.judgement:
                self._check_quota(decision.concept)
        return found

    def _check_quota(self, concept: str | None) -> None:
        for row in self._targets("AND concept = ?", [concept]):
            if row["accepted"] > row["quota"]:
                raise Refused(f"{concept!r} has its {row['quota']} clips: choose another concept, or skip it")

    def undo(self, who: str, name: str) -> Row:
        """Take back a person's last decision; `name` is the undo's own. The row that it undoes. Raises Refused."""
        with self.store.transaction():
            last = self.store.undo(who, name)
            self._note(last["clip_id"], self.store.history(last["clip_id"]))
        return last

    def page(self, wish: Wish, count: int, after: str | None = None) -> list[Row]:
        """The next `count` candidates of a wish, after the clip `after`. Raises ConfigError for a rule that is none."""
        return self._walk(wish, count, after, "", [])

    def next_for(self, who: str, wish: Wish, after: str | None = None) -> Row | None:
        """The next clip that a person shall judge (`peek`), kept for them."""
        with self.store.transaction():
            found = self.peek(who, wish, after)
            if found is not None:
                held = self.store.lease(found["clip_id"], who)
                assert held is None, "a peek passes over what is held"
        return found

    def peek(self, who: str, wish: Wish, after: str | None = None) -> Row | None:
        """The next clip in the order after `after`, then from the beginning: not judged or skipped by this person, nobody
        else's now, and of no concept that is full."""
        full = [concept for concept, is_full in self.targets().items() if is_full]
        if wish.concept in full:
            return None
        full = [] if self.is_target(wish.concept) else full  # accepted here, a clip is one of this concept's
        free = f"""AND coalesce(c.concept, '') NOT IN ({", ".join("?" * len(full))})
                   AND NOT EXISTS (SELECT 1 FROM cache.mine m WHERE m.who = ? AND m.clip_id = c.clip_id)
                   AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.clip_id = c.clip_id AND l.who <> ? AND l.until > ?)"""
        for start in dict.fromkeys((after, None)):
            if found := self._walk(wish, 1, start, free, [*full, who, who, time.time()]):
                return found[0]
        return None

    def keep(self, clip_id: str, who: str) -> str | None:
        """Keep a clip for a person who has it open; the name of the one who has it, where another does."""
        with self.store.transaction():
            return self.store.lease(clip_id, who)

    def _walk(self, wish: Wish, count: int, after: str | None, more: str, values: Sequence[Any]) -> list[Row]:
        column, down = wish.column, wish.sort.startswith("-")
        where, own = wish.where
        member = NEAR if wish.concept else ""
        ordered = f"near.{column}" if column == "similarity" else f"c.{column}"
        sign, way = ("<", "DESC") if down else (">", "ASC")
        given = [*([wish.concept] if wish.concept else []), *own, *values]
        shown = f"SELECT c.*{', near.similarity' if wish.concept else ''} FROM cache.candidates c {member} WHERE {where} {more}"
        found: list[Row] = []
        with self.store.lock:
            self._index(wish)
            at = self._place(wish, column, after)
            if at is None or at[0] is not None:  # those without a value come last, either way
                key, here = (f"AND ({ordered}, c.clip_id) {sign} (?, ?)", at) if at else (f"AND {ordered} IS NOT NULL", ())
                query = f"{shown} {key} ORDER BY {ordered} {way}, c.clip_id {way} LIMIT ?"
                found = [_row(r) for r in self.db.execute(query, [*given, *here, count])]
            if len(found) < count:
                key, beyond = (f"AND c.clip_id {sign} ?", [at[1]]) if at and at[0] is None else ("", [])
                query = f"{shown} AND {ordered} IS NULL {key} ORDER BY c.clip_id {way} LIMIT ?"
                found += [_row(r) for r in self.db.execute(query, [*given, *beyond, count - len(found)])]
        return found

    def _place(self, wish: Wish, column: str, after: str | None) -> tuple[Any, str] | None:
        """The key of a clip in an order."""
        if after is None:
            return None
        if column == "similarity":
            query, values = f"SELECT {column} FROM cache.members WHERE clip_id = ? AND concept = ?", [after, wish.concept]
        else:
            query, values = f"SELECT {column} FROM cache.candidates WHERE clip_id = ?", [after]
        found = self.db.execute(query, values).fetchone()
        return (found[0], after) if found is not None else None

    def _index(self, wish: Wish) -> None:
        """An index for an order, made when it is first asked for."""
        if wish.column == "similarity":
            return
        first = "verdict, " if wish.verdict else ""
        name = f"by_{'verdict_' if wish.verdict else ''}{wish.column}"
        self.db.execute(f"CREATE INDEX IF NOT EXISTS cache.{name} ON candidates ({first}{wish.column}, clip_id)")

    def tally(self, wish: Wish) -> dict[str, int]:
        """How many candidates a wish has, by verdict; its own verdict is not asked."""
        where, own = replace(wish, verdict=None).where
        member = NEAR if wish.concept else ""
        query = f"SELECT verdict, count(*) FROM cache.candidates c {member} WHERE {where} GROUP BY verdict"
        with self.store.lock:
            found = self.db.execute(query, [*([wish.concept] if wish.concept else []), *own]).fetchall()
        return dict.fromkeys(VERDICTS, 0) | dict(map(tuple, found))

    def _targets(self, more: str = "", values: Sequence[Any] = ()) -> list[Row]:
        query = f"""SELECT concept, quota,
                           (SELECT count(*) FROM cache.candidates c WHERE c.verdict = 'kept' AND c.taken = t.concept) accepted
                    FROM cache.targets t WHERE TRUE {more}"""
        with self.store.lock:
            return [dict(row) for row in self.db.execute(query, list(values))]

    def targets(self) -> dict[str, bool]:
        """Target concepts, and whether each has its quota."""
        return {row["concept"]: row["accepted"] >= row["quota"] for row in self._targets()}

    def is_target(self, concept: str) -> bool:
        """Whether this is the name of a target concept, and not of a search."""
        return bool(self._targets("AND concept = ?", [concept]))

    def concepts(self) -> list[Row]:
        """Target concepts: `concept, quota, accepted, waiting`, the emptiest first."""
        query = """SELECT m.concept, count(*) FILTER (WHERE verdict = 'not_reviewed')
                   FROM cache.members m JOIN cache.candidates USING (clip_id) GROUP BY m.concept"""
        with self.store.lock:
            waiting = dict(map(tuple, self.db.execute(query)))
        rows = [row | {"waiting": waiting.get(row["concept"], 0)} for row in self._targets()]
        return sorted(rows, key=lambda r: (r["accepted"] / r["quota"], -r["waiting"], r["concept"]))

    def taken(self, concept: str, count: int) -> list[str]:
        """The latest accepted clips of a concept."""
        query = """SELECT c.clip_id FROM cache.candidates c WHERE verdict = 'kept' AND taken = ?
                   ORDER BY (SELECT max(seq) FROM history h WHERE h.clip_id = c.clip_id) DESC LIMIT ?"""
        with self.store.lock:
            return [row[0] for row in self.db.execute(query, [concept, count])]

    def nearest(self, concept: str, count: int) -> list[str]:
        """The clips that are nearest to a concept, whatever was said of them."""
        query = "SELECT clip_id FROM cache.members WHERE concept = ? ORDER BY similarity DESC, clip_id DESC LIMIT ?"
        with self.store.lock:
            return [row[0] for row in self.db.execute(query, [concept, count])]

    def grow(self, concept: str, count: int = GROWN) -> int:
        """Add the nearest waiting candidates to a concept's queue: near its accepted clips, else its seeds, else its text.

        Returns how many are new. Raises Refused where it is full or has nothing to start from.
        """
        target = next((row for row in self._targets("AND concept = ?", [concept])), None)
        if target is None or target["accepted"] >= target["quota"]:
            raise Refused(f"{concept!r} has its {target['quota']} clips" if target else f"no target concept {concept!r}")
        own = next((t for t in self.wanted or () if t.name == concept), None)
        seeds = self.taken(concept, SEEDS) or list(own.seeds if own else ())
        text = own.text if own and not seeds else None
        if not seeds and text is None:
            raise Refused(f"{concept!r} has no accepted clip yet: accept one of it first")
        query = """SELECT clip_id FROM cache.candidates WHERE verdict = 'not_reviewed'
                   AND clip_id NOT IN (SELECT clip_id FROM cache.members WHERE concept = ?)"""
        with self.store.lock:
            among = pa.array([row[0] for row in self.db.execute(query, [concept])], pa.string())
        near = search(self.run, text, seeds, count, among=among) if len(among) else []
        with self.store.transaction():
            rows = [(concept, row["clip_id"], row["similarity"]) for row in near]
            self.db.executemany("INSERT OR REPLACE INTO grown VALUES (?, ?, ?)", rows)
            self._join_grown()
        return len(near)

    def find(self, text: str | None, like: str | None) -> str:
        """Look for candidates by text or likeness; the name under which a Wish's `concept` has them. Raises ConfigError."""
        name = f"like {text}" if text is not None else f"like clip {like}"
        with self.store.lock:
            among = pa.array([row[0] for row in self.db.execute("SELECT clip_id FROM cache.candidates")], pa.string())
        near = search(self.run, text, [like] if like else [], FOUND, among=among)
        with self.store.transaction():
            rows = [(name, row["clip_id"], row["similarity"]) for row in near]
            self.db.executemany("INSERT OR REPLACE INTO cache.members VALUES (?, ?, ?)", rows)
        return name

    def people(self) -> dict[str, Any]:
        """Who decided how much, and how far people agree."""
        history = self.store.history()
        undone = {row["undoes"] for row in history}
        count: dict[str, dict[str, int]] = {}
        for row in history:
            if row["action"] != "undo" and row["judgement"] not in undone:
                own = count.setdefault(row["who"], {"accept": 0, "reject": 0, "skip": 0})
                own[row["action"]] += 1
        return {"people": count, **summary(list(review.by_clip(history).values()), self.store.rule)}


def _of(choose: Any) -> Any:
    """SQL's least or greatest: of the values that are not null."""

    def chosen(*values: Any) -> Any:
        known = [v for v in values if v is not None]
        return choose(known) if known else None

    return chosen


def _row(found: Any) -> Row:
    row = dict(found)
    return row | {"fields": json.loads(row["fields"]) if row["fields"] else {}}


def _candidates(run: str, subset: str) -> Iterator[list[tuple[Any, ...]]]:
    """Candidates of a subset, some thousands at a time: FACTS and BESIDE."""
    reasons = ", ".join(f"'{reason}'" for reason in (review.KEPT, *review.REASONS))
    with connect(run, ("clips", "sources", "selection", "captions", "concepts")) as connection:
        views = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
        named = {row[0] for row in connection.execute("DESCRIBE sources").fetchall()}
        own = "s.caption" if "caption" in named else "NULL"
        drafts = "LEFT JOIN (FROM captions WHERE status = 'ok') k USING (clip_id)" if "captions" in views else ""
        near = "LEFT JOIN concepts near USING (clip_id)" if "concepts" in views else ""
        fields = f"to_json({{{', '.join(f'{f}: k.{f}' for f in FIELDS)}}})" if drafts else "NULL"
        caption = f"coalesce({'k.caption, ' if drafts else ''}{own}, '')"
        facts = [f"c.{name}" if name in CLIPS.names else name for name in FACTS[:-3]]
        query = f"""SELECT {", ".join(facts)}, chosen.cluster, {draw_sql(0, "review", "clip_id")}, {caption}, {fields},
                           lower(concat_ws(' ', {caption}, c.path)), s.pixel_aspect, s.rotation,
                           {"near.similarity" if near else "NULL"}
                    FROM (FROM selection WHERE subset = $1 AND reason IN ({reasons})) chosen
                    JOIN clips c USING (clip_id) JOIN sources s ON s.source_id = c.source_id {drafts} {near} ORDER BY clip_id"""
        found = connection.execute(query, [subset])
        while rows := found.fetchmany(10_000):
            yield rows
