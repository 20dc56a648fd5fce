"""`reelset demo`: make a corpus whose truth is known, run the whole job on it, and compare."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation import storage
from jobs.demo_corpus import make_corpus
from jobs.demo_films import Truth

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "Truth", "compare", "demo", "make_corpus", "render"]

SUBSET = "everyday"
CUT_TOLERANCE_FRAMES = 2
BAR_TOLERANCE_PX = 3
SIZE_TOLERANCE_PX = 1
"""Pixel aspect and odd sizes may be rounded either way."""
TEXT_SEEN = 0.6
"""A text score from here on says that there is text; the paper's threshold."""
STATIC_FRAC = 0.9
SLIDESHOW_SEEN = 0.5
JITTER_SHOTS_PER_S = 0.85

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One fact about one file: what is true, what the run says, and whether they agree.

    `known_limit` marks what the default detectors are known to miss; it is shown and not counted.
    """

    path: str
    fact: str
    truth: str
    found: str
    ok: bool
    known_limit: bool = False


def demo(output: Path, engine: str) -> int:
    """Make `output`/corpus, run everything into `output`/run, print truth against found. 0 where they agree, else 1.

    Raises ConfigError where the run folder is of other settings.
    """
    from rich.console import Console

    from jobs import pipeline
    from jobs.config import load

    console = Console(highlight=False)
    console.print(f"making the corpus in {output / 'corpus'}")
    truths = make_corpus(output / "corpus")
    config = load(None, [f"engine.kind={engine}"])
    code = pipeline.run(str(output / "corpus" / "manifest.csv"), str((output / "run").absolute()), config)
    rows = compare(output / "run", truths)
    console.print(render(rows))
    wrong = sum(not row.ok and not row.known_limit for row in rows)
    console.print(f"{len(rows)} facts about {len(truths)} files, {wrong} wrong")
    console.print(f"look at {output / 'run/report/index.html'} and {output / 'run/shards'}")
    return code or int(wrong > 0)


def compare(run_folder: Path, truths: Iterable[Truth]) -> list[Row]:
    """Every fact of the truth beside what the run's tables say of it."""
    found = Found(run_folder)
    return [row for truth in truths for row in _facts(truth, found)]


class Found:
    """The tables of a run, by file."""

    def __init__(self, run: Path) -> None:
        def rows(table: str) -> list[Record]:
            found: list[Record] = storage.read_table(str(run / table)).to_pylist()
            return found

        self.sources: dict[str, list[Record]] = defaultdict(list)
        self.clips: dict[str, list[Record]] = defaultdict(list)
        for source in rows("sources"):
            self.sources[source["path"]].append(source)
        for clip in rows("clips"):
            self.clips[clip["path"]].append(clip)
        self.path_of = {s["source_id"]: s["path"] for many in self.sources.values() for s in many}
        self.reason = {r["clip_id"]: r["reason"] for r in rows(f"selection/{SUBSET}")}
        path = {c["clip_id"]: c["path"] for many in self.clips.values() for c in many}
        self.near: dict[str, set[str]] = defaultdict(set)
        for row in rows("duplicates"):
            self.near[path[row["clip_id"]]].add(path[row["duplicate_of"]])
        self.written = {r["clip_id"] for r in rows(f"produced/{SUBSET}") if r["status"] == "ok"}


def _facts(truth: Truth, found: Found) -> Iterator[Row]:
    sources = found.sources[truth.path]
    if len(sources) != 1:
        yield Row(truth.path, "one row", "1", str(len(sources)), False)
        return
    source, clips = sources[0], [c for c in found.clips[truth.path] if c["status"] == "ok"]
    for fact, want, have, ok in (
        *_source_facts(truth, source, found),
        *_shot_facts(truth, source, clips),
        *_picture_facts(truth, clips),
        *_verdict(truth, source, clips, found),
    ):
        yield Row(truth.path, fact, want, have, ok, fact in truth.known_limits)


Fact = tuple[str, str, str, bool]


def _source_facts(truth: Truth, source: Record, found: Found) -> Iterator[Fact]:
    """How the source ended, and what the probe and the decoder say of it."""
    said = source["status"] + (f": {source['error_code']}" if source["error_code"] else "")
    right = source["status"] in truth.status and (not truth.error_codes or source["error_code"] in truth.error_codes)
    yield "status", " or ".join(truth.error_codes or truth.status), said, right
    if truth.size is not None and source["width"] is not None:
        have = (source["width"], source["height"])
        near = all(abs(a - b) <= SIZE_TOLERANCE_PX for a, b in zip(have, truth.size, strict=True))
        yield "size", "{}x{}".format(*truth.size), "{}x{}".format(*have), near
    if truth.frames is not None and source["frames"] is not None:
        yield "frames", str(truth.frames), str(source["frames"]), source["frames"] == truth.frames
    if truth.exact_copy_of is not None:
        original = found.path_of.get(source["exact_copy_of"], "none")
        yield "exact copy of", truth.exact_copy_of, original, original == truth.exact_copy_of
    wanted = {truth.near_copy_of} if truth.near_copy_of else set()
    if wanted or found.near[truth.path]:
        have_near = found.near[truth.path]
        yield "near copy of", _list(sorted(wanted)), _list(sorted(have_near)), have_near == wanted


def _shot_facts(truth: Truth, source: Record, clips: Sequence[Record]) -> Iterator[Fact]:
    """Hard cuts, gradual transitions, and clips that run across either."""
    if truth.cut_frames is None or source["cut_frames"] is None:
        return
    cuts, spans = list(source["cut_frames"]), [(g["start"], g["end"]) for g in source["gradual"] or []]
    inside = [c for c in cuts if not any(a - 2 <= c <= b + 2 for a, b, _ in truth.gradual)]
    yield "cuts", _list(truth.cut_frames), _list(cuts), _matched(inside, truth.cut_frames)
    want = [(a, b) for a, b, _ in truth.gradual]
    hit = all(any(a < y and x < b for x, y in spans) for a, b in want)
    stray = any(not any(a - 5 < y and x < b + 5 for a, b in want) for x, y in spans)
    yield "gradual", _list(f"{kind} {a}-{b}" for a, b, kind in truth.gradual), _spans(source), hit and not stray
    breaks = [*truth.cut_frames, *((a + b) // 2 for a, b, _ in truth.gradual)]
    across = [
        f"{c['start_frame']}-{c['end_frame']}"
        for c in clips
        if any(c["start_frame"] + CUT_TOLERANCE_FRAMES < x < c["end_frame"] - CUT_TOLERANCE_FRAMES for x in breaks)
    ]
    if breaks:
        yield "clips across", "none", _list(across), not across


def _matched(found: Sequence[int], truth: Sequence[int]) -> bool:
    """Both name the same frames, give or take the tolerance."""
    pairs = zip(sorted(found), sorted(truth), strict=False)
    return len(found) == len(truth) and all(abs(a - b) <= CUT_TOLERANCE_FRAMES for a, b in pairs)


def _picture_facts(truth: Truth, clips: Sequence[Record]) -> Iterator[Fact]:
    """What is in the pictures; a column that was not measured (a cheaper rule had stopped the clip) is passed over."""
    names = tuple(f"border_{side}_px" for side in ("top", "bottom", "left", "right"))
    measured = [c for c in clips if all(c[n] is not None for n in names)]
    if truth.bars is not None and measured:
        bars = max(([round(c[n]) for n in names] for c in measured), key=lambda b: _off(b, truth.bars or ()))
        yield "bars", _list(truth.bars), _list(bars), _off(bars, truth.bars) <= BAR_TOLERANCE_PX
    for fact, want, column, limit in (
        ("text", truth.has_text, "text_score", TEXT_SEEN),
        ("static", truth.static, "motion_static_frac", STATIC_FRAC),
        ("slideshow", truth.slideshow, "slideshow_score", SLIDESHOW_SEEN),
        ("jitter", truth.jitter, "jitter_shots_per_s", JITTER_SHOTS_PER_S),
    ):
        scores = [c[column] for c in clips if c[column] is not None]
        if want is not None and scores:
            yield (
                fact,
                _said(want),
                f"{_said(max(scores) >= limit)} ({max(scores):.2f})",
                (max(scores) >= limit) == want,
            )


def _verdict(truth: Truth, source: Record, clips: Sequence[Record], found: Found) -> Iterator[Fact]:
    """What the `everyday` rules made of it, and whether what they kept was written."""
    if not truth.verdict:
        return
    reasons = [found.reason.get(c["clip_id"], "not selected upon") for c in clips]
    if truth.verdict == ("kept",):
        kept = sum(r == "kept" for r in reasons)
        written = sum(c["clip_id"] in found.written for c in clips)
        others = sorted({r for r in reasons if r != "kept"} | ({source["reason"]} if source["reason"] else set()))
        right = kept >= truth.kept_clips and written == kept
        have = f"{kept} kept, {written} written" + (f"; {_list(others)}" if others else "")
        yield "verdict", f"kept ({truth.kept_clips} or more)", have, right
        return
    reasons = [source["reason"]] if source["reason"] and not clips else reasons or ["no_clip"]
    right = all(r != "kept" and any(w in r for w in truth.verdict) for r in reasons)
    yield "verdict", " or ".join(truth.verdict), _list(sorted(set(reasons))), right


def _off(bars: Sequence[float], truth: Sequence[int]) -> float:
    """The worst side's distance from the truth, in pixels."""
    return max(abs(a - b) for a, b in zip(bars, truth, strict=True))


def _said(value: bool) -> str:
    return "yes" if value else "no"


def _list(values: Iterable[object]) -> str:
    return ", ".join(str(v) for v in values) or "none"


def _spans(source: Record) -> str:
    return _list(f"{g['kind']} {g['start']}-{g['end']}" for g in source["gradual"] or [])


def render(rows: Iterable[Row]) -> "Table":
    """Truth against found: one line a fact, the file's name where it begins."""
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "fact", "truth", "found", "", title="truth against found", title_justify="left")
    path = ""
    for row in rows:
        if path and row.path != path:
            table.add_section()
        mark = Text("✓", "green") if row.ok else Text("~ known limit", "yellow") if row.known_limit else Text("✗", "bold red")
        table.add_row(*(Text(cell) for cell in (row.path if row.path != path else "", row.fact, row.truth, row.found)), mark)
        path = row.path
    return table
