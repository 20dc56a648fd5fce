"""What the report says of concepts: their sizes before and after, how many there are in effect, and exemplar frames."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from curation.select import LEFT
from jobs.inspect import rows
from jobs.pictures import middle_frames

if TYPE_CHECKING:
    import duckdb

CARDS = 24
"""Concepts that are shown, the largest of the run first."""
PICTURES = 4
PICTURE_BYTES = 2 << 20


def concepts(connection: "duckdb.DuckDBPyConnection", run: str) -> dict[str, Any]:
    """Cards of the largest concepts, and for each subset the numbers of its clips by concept before and after resampling."""
    total = rows(connection, "SELECT count(*) AS n, sum(size)::BIGINT AS clips FROM clusters")[0]
    cards = rows(connection, f"FROM clusters ORDER BY size DESC, cluster LIMIT {CARDS}")
    shown = {clip_id: "" for card in cards for clip_id in card["exemplars"][:PICTURES]}
    jpegs = middle_frames(connection, run, list(shown))
    room = PICTURE_BYTES
    for place in range(PICTURES):  # the first picture of every card before the second of any
        for card in cards:
            uri = jpegs.get(card["exemplars"][place]) if place < len(card["exemplars"]) else None
            room -= len(uri or "")
            if uri and room >= 0:
                card.setdefault("pictures", []).append({"clip_id": card["exemplars"][place], "uri": uri})
    subsets: dict[str, dict[str, Any]] = {}
    for row in rows(connection, SIZES):
        own = subsets.setdefault(row["subset"], {"before": {}, "after": {}})
        own["before"][row["cluster"]], own["after"][row["cluster"]] = row["before"], row["after"]
    for own in subsets.values():
        own["concepts_before"], own["concepts_after"] = effective(own["before"].values()), effective(own["after"].values())
        own["largest"] = max(own["before"].values())
    return {"count": total["n"], "clips": total["clips"] or 0, "cards": cards, "subsets": subsets}


SIZES = f"""
    SELECT subset, cluster, count(*) AS before, count(*) FILTER (kept) AS after FROM selection
    WHERE cluster IS NOT NULL AND ({LEFT}) GROUP BY ALL ORDER BY ALL"""


def effective(sizes: Iterable[int]) -> float:
    """How many concepts of equal size would be as various: the exponential of the entropy of the sizes."""
    known = [size for size in sizes if size]
    whole = sum(known)
    return math.exp(-sum(n / whole * math.log(n / whole) for n in known)) if whole else 0.0
