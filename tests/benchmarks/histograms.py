"""The histograms of a measured run as pictures for the documentation, with the thresholds of the shipped lists.

    python tests/benchmarks/histograms.py RUN docs/img

They are the report's own, one SVG a score: run it over your own videos measured with `--set score_all=true`.
"""

import sys
from pathlib import Path

from jobs.config import rule_list, shipped_lists
from jobs.inspect import connect
from jobs.report import histograms, render

STYLE = """
.hist { font: 10px ui-sans-serif, system-ui, sans-serif; background: #fff; } .hist rect { fill: #2f6b5e; opacity: .85; }
.hist line.base { stroke: #ddd; } .hist line.mark { stroke: #b4542f; stroke-width: 1.5; stroke-dasharray: 3 2; }
.hist text { fill: #666; } .hist text.mark { fill: #b4542f; font-weight: 600; }
"""


def main() -> None:
    """Write `hist_<score>.svg` of every score with a value."""
    run, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    lists = [rule_list(name) for name in shipped_lists()]
    with connect(run) as connection:
        for histogram in histograms(connection, lists):
            (folder / f"hist_{histogram['name']}.svg").write_text(render({"h": histogram, "style": STYLE}, "histogram.svg.j2"))


if __name__ == "__main__":
    main()
