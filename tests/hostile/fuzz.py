"""A coverage-guided fuzz run of the path from a file to its scores: probe, decode, measure, and the rows of the tables.

python -m tests.hostile.fuzz --seconds 300 --seed 0

What counts as new is a line step of our own modules, a message of libav, or another kind of result; an input that
reaches something new is changed further. Each runs in the product's own child process, under its limits. A finding is
whatever is not one of the codes that damage may have: an exception of our own, a crash, a hang, too much memory.
"""

import argparse
import re
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from curation import storage
from curation.child import Child
from curation.errors import SourceError
from curation.media import MediaLimits, probe
from curation.tables import CLIPS, FRAMES, SERIES, SOURCES
from filters.measure import MeasureConfig, measure
from tests.hostile.corpus import pictures
from tests.hostile.mutate import mutated
from tests.media_samples import make_video, moving

LIMITS = MediaLimits(stall_s=20, source_s=60, memory_mb=1500, max_pixels=2_000_000, max_frames=5000)
"""Frames are kept small so that executions are many; the corpus has the large ones."""
FINDINGS = frozenset(("internal", "crashed", "timeout", "memory", "stage_failed", "read_failed"))
LARGEST = 1 << 18
QUICK = 10_000
"""Inputs that cost more steps of our own code are not changed further: hundreds of others could be tried meanwhile. Steps,
not seconds: what is kept decides what is tried next, and must not hang on how busy the machine is."""
ROOT = str(Path(__file__).parent.parent.parent)
OURS = tuple(f"{ROOT}/{room}/" for room in ("curation", "filters"))
NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Execution:
    """What one input came to: its code (None: measured), a message, and what it reached."""

    code: str | None
    message: str
    reached: frozenset[int]
    steps: int = 0
    """Lines of our own that it went through."""


@dataclass
class Finding:
    """An input that should not have come to this."""

    code: str
    message: str
    data: bytes
    suffix: str


@dataclass
class Outcome:
    """What a fuzz run did."""

    executions: int = 0
    seconds: float = 0.0
    tried: int = 0
    """Checksum of all inputs, in order."""
    kept: int = 0
    reached: set[int] = field(default_factory=set)
    codes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    worst_s: float = 0.0
    worst_mb: float = 0.0


def execute(path: str, limits: MediaLimits) -> Execution:
    """One file through the path, watched. Runs in a child process."""
    import av.logging

    watch = _Watch()
    av.logging.set_level(av.logging.WARNING)
    code, message, kind = None, "", ""
    with av.logging.Capture() as said:
        sys.settrace(watch)
        try:
            kind = _through(path, limits)
        except SourceError as error:
            code, message = error.code, error.message
        finally:
            sys.settrace(None)
    words = {f"{name}: {text}" for _, name, text in said} | {f"{code}: {message}", f"kind {kind}"}
    reached = frozenset(watch.steps | {zlib.crc32(NUMBER.sub("#", w.replace(path, "PATH")).encode()) for w in words})
    return Execution(code, message, reached, watch.count)


def _through(path: str, limits: MediaLimits) -> str:
    """Probe, measure and make the tables' rows; what kind of media it was."""
    row: dict[str, Any] = dict.fromkeys(SOURCES.names) | {"path": "a", "source_id": "0" * 16, "status": "ok", "bytes": 1}
    row |= probe(path, limits)
    found = measure(path, row, MeasureConfig(), limits)
    row |= found.row_updates
    series = [] if found.series is None else [found.series]
    for rows, schema in (([row], SOURCES), (found.clips, CLIPS), (series, SERIES), (found.frames, FRAMES)):
        storage.rows_table(rows, schema).validate(full=True)
    for clip in [row, *found.clips]:
        unfit = [k for k, v in clip.items() if isinstance(v, float) and not np.isfinite(v)]
        assert not unfit, f"not finite: {unfit}"
    told = ("container", "video_codec", "audio_codec", "rotation", "interlaced", "bit_depth", "hdr", "is_vfr", "full_range")
    return f"{[row.get(k) for k in told]} {len(found.clips)} {bool(row['decode_errors'])}"


class _Watch:
    """The steps from line to line that our own modules take, as numbers."""

    def __init__(self) -> None:
        self.steps: set[int] = set()
        self.count = 0
        self.ours: dict[CodeType, int | None] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if code not in self.ours:
            mine = code.co_filename.startswith(OURS)
            self.ours[code] = zlib.crc32(f"{code.co_filename}:{code.co_qualname}".encode()) if mine else None
        base = self.ours[code]
        if base is None:
            return None
        before = frame.f_lineno

        def step(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal before
            self.count += 1
            self.steps.add(hash((base, before, frame.f_lineno, event == "exception")))
            before = frame.f_lineno
            return step

        return step


def seeds(folder: Path) -> list[tuple[bytes, str]]:
    """Small sound films and pictures, with their suffixes."""
    made = [(data, suffix) for suffix, data in pictures().items()]
    for name, codec, pix_fmt in (
        ("h264.mp4", "libx264", "yuv420p"),
        ("h265.mp4", "libx265", "yuv420p"),
        ("h264.mkv", "libx264", "yuv420p"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("mpeg4.avi", "mpeg4", "yuv420p"),
        ("mjpeg.mov", "mjpeg", "yuvj420p"),
        ("prores.mov", "prores_ks", "yuv422p10le"),
        ("mpeg2.ts", "mpeg2video", "yuv420p"),
        ("h264.ts", "libx264", "yuv420p"),
        ("mpeg1.mpg", "mpeg1video", "yuv420p"),
        ("flv1.flv", "flv", "yuv420p"),
        ("wmv2.wmv", "wmv2", "yuv420p"),
        ("h263.3gp", "h263", "yuv420p"),
        ("mpeg2.mxf", "mpeg2video", "yuv420p"),
        ("raw.y4m", "rawvideo", "yuv420p"),
        ("ffv1.mkv", "ffv1", "yuv420p"),
    ):
        size = (176, 144) if codec == "h263" else (96, 64)
        extra = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        # Bit by bit the same in every process: other muxers draw their identifiers.
        same = {"fflags": "+bitexact"}
        file = make_video(folder / name, moving(*size, seed=3), 10, 25, codec, pix_fmt, options=extra, muxer=same)
        made.append((file.read_bytes(), file.suffix))
    return made


def fuzz(seconds: float, seed: int, most: int = sys.maxsize, say: Callable[[Outcome], None] = lambda _: None) -> Outcome:
    """Fuzz until `seconds` are over or `most` inputs were run.

    The seed decides each draw; but an input that took longer than `QUICK_S` is not changed further, so that two runs of
    one seed part ways where the machine was slower. A finding keeps its bytes: it is repeated with them.
    """
    rng, outcome = np.random.default_rng(seed), Outcome()
    child, began = Child(LIMITS), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="reelset-fuzz-") as scratch:
            folder = Path(scratch)
            pool = seeds(folder)
            for data, suffix in list(pool):
                _run(child, folder, data, suffix, outcome)
            while outcome.executions < most and (passed := time.monotonic() - began) < seconds:
                data, suffix = pool[
                    int(max(rng.integers(len(pool), size=2)) if rng.random() < 0.5 else rng.integers(len(pool)))
                ]
                data = mutated(data, rng, [d for d, _ in pool], LARGEST)
                new, steps = _run(child, folder, data, suffix, outcome)
                if new and steps < QUICK:
                    pool.append((data, suffix))
                    outcome.kept += 1
                if passed - outcome.seconds > 10:
                    outcome.seconds = passed
                    say(outcome)
    finally:
        child.close()
    outcome.seconds = time.monotonic() - began
    return outcome


def _run(child: Child, folder: Path, data: bytes, suffix: str, outcome: Outcome) -> tuple[bool, int]:
    """Run one input; whether it reached something new, and how many steps it took."""
    path = folder / f"input{suffix}"
    path.write_bytes(data)
    began = time.monotonic()
    try:
        done = child.call(execute, str(path), LIMITS)
    except SourceError as error:
        done = Execution(error.code, error.message, frozenset())
    outcome.worst_mb = max(outcome.worst_mb, child.usage.peak_mb)
    outcome.worst_s = max(outcome.worst_s, time.monotonic() - began)
    outcome.executions += 1
    outcome.codes[done.code or "none"] += 1
    if done.code in FINDINGS:
        known = {(f.code, NUMBER.sub("#", f.message)) for f in outcome.findings}
        if (done.code, NUMBER.sub("#", done.message)) not in known:
            outcome.findings.append(Finding(str(done.code), done.message, data, suffix))
    new = not done.reached <= outcome.reached
    outcome.reached |= done.reached
    outcome.tried = zlib.crc32(data, outcome.tried)
    return new, done.steps


def main() -> None:
    """Fuzz, say what was done, write findings to a folder; exit code 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="folder for the inputs that are findings")
    given = parser.parse_args()

    def line(o: Outcome) -> str:
        done = (
            f"{o.seconds:.0f} s: {o.executions} executions, {o.kept} inputs kept, {len(o.reached)} steps and messages reached"
        )
        return f"{done}, {len(o.findings)} findings; worst {o.worst_s:.1f} s, {o.worst_mb:.0f} MB"

    outcome = fuzz(given.seconds, given.seed, given.runs, lambda o: print(line(o), flush=True))
    print(line(outcome))
    print("codes:", ", ".join(f"{n} {code}" for code, n in outcome.codes.most_common()))
    for n, finding in enumerate(outcome.findings):
        given.findings.mkdir(parents=True, exist_ok=True)
        place = given.findings / f"seed{given.seed}-{n}{finding.suffix}"
        place.write_bytes(finding.data)
        print(f"FINDING {finding.code}: {finding.message}\n  {place}")
    sys.exit(1 if outcome.findings else 0)


if __name__ == "__main__":
    # Under `-m` this file is `__main__`, which a child process cannot import: run the importable module.
    from tests.hostile import fuzz as module

    module.main()
