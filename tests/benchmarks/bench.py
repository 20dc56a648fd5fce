"""Every figure of cost in one go, on the same files, each beside its target.

    python -m tests.benchmarks.bench [--videos FOLDER] [--only NAME ...] [--long] [--check]

Ratios are printed: absolute figures drift with the machine. `--long` adds the memory of a two-hour film (half an hour);
`--check` exits with 1 where a target is missed.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bucketing.buckets import SIZES
from bucketing.cut import EncodeConfig
from tests.benchmarks import cost, whole_job
from tests.benchmarks.corpus import Video, machine, videos
from tests.benchmarks.processes import Spent

JOB_PIECES = 24
"""240 s of mixed 720p."""
LONG_JOB_PIECES = 128
"""So many that on two cores the job takes at least eight times its start-up."""
FILM_LENGTHS_S = (600, 1800, 7200)


@dataclass(frozen=True)
class Figure:
    """One measured number and what it must reach; `note` says under which conditions."""

    name: str
    measured: float
    target: float
    at_least: bool = False
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "ok" if self.reached else "MISSED"
        return f"{self.name:52} {self.measured:9.2f}  {sign} {self.target:<8g} {verdict:7} {self.note}"


def analysis(chosen: Sequence[Video]) -> list[Figure]:
    """Analysis over bare decoding, and over three tools one after the other."""
    total = cost.measure_costs(chosen)
    cost.say_costs(total)
    seconds = {name: sum(by_height.values()) for name, by_height in total.items()}
    tools = sum(seconds[tool.__name__] for tool in cost.TOOLS)
    note = f"{len(chosen)} files"
    return [
        Figure("analysis over bare decoding, CPU", seconds["analysis"] / seconds["bare_decode"], 2.0, note=note + ", aim 1.5"),
        Figure("analysis over three separate tools, CPU", seconds["analysis"] / tools, 0.25, note=note),
    ]


def text(chosen: Sequence[Video]) -> list[Figure]:
    """The text filter over every video of the folder: it has to meet text."""
    command = [sys.executable, "-m", "tests.benchmarks.text_cost", str(chosen[0].path.parent)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print("  " + said.rstrip().replace("\n", "\n  "))
    every = next(line for line in said.splitlines() if line.split()[0] == "all").split()
    return [Figure("text per 10 s of clip, CPU-s", float(every[4]), 1.5, note=f"{every[1]} clips, {every[2]} s")]


def cores(chosen: Sequence[Video]) -> list[Figure]:
    """Two cores against one on a long job."""
    files, two = whole_job.pieces(chosen, LONG_JOB_PIECES), whole_job.two_cores()
    if len(two) < 2:
        print("  one core only: two cores against one is not measured")
        return []
    beyond: list[Spent] = []
    for held in (two[:1], two):
        start_up, job = start_up_cost(chosen, len(held)), whole_job.job("long", files, held)[0]
        say(f"start-up on {len(held)} core(s)", start_up)
        say(f"job of {len(files)} files on {len(held)} core(s)", job)
        beyond.append(job - start_up)
    times = beyond[1].wall_s / start_up.wall_s
    note = f"job beyond start-up is {times:.1f} times the start-up"
    return [Figure("two cores against one, wall", beyond[0].wall_s / beyond[1].wall_s, 1.8, at_least=True, note=note)]


def peer(chosen: Sequence[Video]) -> list[Figure]:
    """A whole job against a fixed-stride transcode and a motion pass."""
    files, two = whole_job.pieces(chosen, JOB_PIECES), whole_job.two_cores()
    ours, run = whole_job.job("ray", files, two)
    kept, clips = whole_job.kept_share(run)
    start_up = start_up_cost(chosen, len(two))
    say("start-up", start_up)
    say("job", ours)
    encode, found = EncodeConfig(), []
    for size, label in ((SIZES[256]["16x9"], "256-pixel clips"), (None, "clips of source size")):
        theirs = whole_job.peer(files, two, size)
        passes = f"transcode {theirs.transcode_s:.1f} s, motion {theirs.motion_s:.1f} s"
        print(f"  {'peer, ' + label:38} {theirs.wall_s:8.1f} s wall {theirs.cpu_s:8.1f} s CPU   {passes}")
        cpu = (ours - start_up).cpu_s / theirs.cpu_s
        note = f"x264 {encode.preset} crf {encode.crf}, {kept} of {clips} clips kept; beyond start-up "
        note += f"{(ours - start_up).wall_s / theirs.wall_s:.2f}, in CPU {cpu:.2f}"
        found.append(Figure(f"whole job over the peer's, {label}, wall", ours.wall_s / theirs.wall_s, 0.6, note=note))
    return found


def engine(chosen: Sequence[Video]) -> list[Figure]:
    """CPU of a job on Ray over the same in one process, start-ups taken off."""
    files, two = whole_job.pieces(chosen, JOB_PIECES), whole_job.two_cores()
    beyond = {}
    for kind in ("ray", "inline"):
        start_up, spent = start_up_cost(chosen, len(two), kind), whole_job.job(kind, files, two, kind)[0]
        say(f"{kind}, start-up", start_up)
        say(kind, spent)
        beyond[kind] = (spent - start_up).cpu_s
    ratio = beyond["ray"] / beyond["inline"]
    return [Figure("Ray over inline, CPU beyond start-up", ratio, 1.1, note="the whole process tree")]


def memory(chosen: Sequence[Video]) -> list[Figure]:
    """Peak memory of analysis on films of growing length, decoding process included."""
    peaks = {}
    for length_s in FILM_LENGTHS_S:
        spent, _ = whole_job.job("film", [whole_job.film(chosen, length_s)], whole_job.two_cores()[:1], "inline", "analyze")
        say(f"{length_s // 60} min of 1080p", spent)
        peaks[length_s] = spent.peak_mb / 1024
    shortest, longest = peaks[FILM_LENGTHS_S[0]], peaks[FILM_LENGTHS_S[-1]]
    note = f"{longest / shortest:.2f} times that of {FILM_LENGTHS_S[0] // 60} minutes"
    return [Figure("peak memory on two hours of 1080p, GiB", longest, 1.5, note=note)]


@cache
def _start_up(files: tuple[Path, ...], count: int, engine: str) -> Spent:
    runs = [whole_job.job("tiny", files, whole_job.two_cores()[:count], engine)[0] for _ in range(2)]
    return min(runs, key=lambda s: s.wall_s)


def start_up_cost(chosen: Sequence[Video], count: int, engine: str = "ray") -> Spent:
    """What a job over tiny files costs on `count` cores, the lesser of two."""
    return _start_up(tuple(whole_job.tiny(chosen)), count, engine)


def say(label: str, spent: Spent) -> None:
    """One line on a command."""
    print(f"  {label:38} {spent.wall_s:8.1f} s wall {spent.cpu_s:8.1f} s CPU {spent.peak_mb:8.0f} MB", flush=True)


FIGURES: dict[str, Callable[[Sequence[Video]], list[Figure]]] = {
    "analysis": analysis,
    "text": text,
    "peer": peer,
    "engine": engine,
    "cores": cores,
}


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*FIGURES, "memory"])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    folder, chosen = videos(asked.videos)
    print(f"{machine()}\n{len(chosen)} files of {folder}")
    wanted = FIGURES | ({"memory": memory} if asked.long or "memory" in (asked.only or ()) else {})
    found: list[Figure] = []
    for name, measure in wanted.items():
        if asked.only is None or name in asked.only:
            print(f"{name}: {(measure.__doc__ or '').splitlines()[0]}", flush=True)
            found += measure(chosen)
    print(f"\n{'figure':52} {'measured':>9}  {'target':11} {'':7}")
    print(*found, sep="\n")
    if asked.check and not all(figure.reached for figure in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
