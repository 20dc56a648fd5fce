"""What-if on about a million clips: `python -m tests.benchmarks.what_if_million [RUN]`.

RUN is one of `tests.benchmarks.million`, whose steps "list and plan" and "analyze" were made: 600 000 sources have 957 000
clips. Says the wall and CPU time of each question; the target is 5 s of wall time on two idle cores.
"""

import os
import sys
import time

from jobs import what_if
from tests.jobs.run_samples import shown

RULES = (["motion_mv > 1.5"], ["border_frac < 0.05", "text_score < 0.8"], ["duration_s >= 6"])


def main(run: str = "build/million/600000-256", name: str = "everyday") -> None:
    for rules in RULES:
        wall, cpu = time.perf_counter(), time.process_time()
        new, base = what_if.supposed(run, rules, name)
        page = shown(what_if.compared(run, new, base, rules))
        used = time.process_time() - cpu
        said = next(line for line in page.splitlines() if line.startswith(" kept "))
        print(f"{', '.join(rules):40} wall {time.perf_counter() - wall:6.2f} s  cpu {used:6.2f} s  {said}", flush=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
