"""The shipped statistics: true figures by DuckDB, and the same figures by Spark."""

import math
from pathlib import Path
from typing import Any

import pytest

from curation.errors import ConfigError
from curation.tables import CLIPS
from jobs import stats
from jobs.inspect import connect, rows, subsets
from jobs.stats import SCORES, shipped
from tests.jobs import analyst_run
from tests.jobs.run_samples import make_run, row_of, shown

Row = dict[str, Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("stats")
    make_run(place)
    return str(place)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = analyst_run.make_run(tmp_path_factory.mktemp("drawn"))
    analyst_run.select(place)
    return str(place)


def by_duckdb(run: str, name: str) -> list[Row]:
    with connect(run) as connection:
        stats.prepare(connection, subsets(run))
        return rows(connection, shipped()[name].sql)


def test_the_list_says_what_there_is_and_what_lacks(small: str) -> None:
    page = shown(stats.stats(small))
    assert all(one.about in page for one in shipped().values())
    assert "needs captions" in row_of(page, " captions ", "Good captions") and "needs" not in row_of(page, " funnel ")


def test_what_cannot_be_said_stops_nothing_else(small: str) -> None:
    page = shown(stats.stats(small, ["captions", "cost"]))
    assert "captions: this run has no table captions" in page
    assert row_of(page, " measure ", "small").split()[1:3] == ["7", "3"]
    assert str(stats.stats(small, ["clusters", "buckets"], csv=True)).startswith("# clusters: this run has no table clusters\n")


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no statistic is named 'funel'; there are buckets, .* funnel, .*, and all"):
        stats.chosen(["funnel", "funel"])


def test_the_funnel_of_a_known_run(small: str) -> None:
    found = {row["step"]: row for row in by_duckdb(small, "funnel") if row["kind"] == "video"}
    steps = {name: (row["dropped"], row["unknown"], row["clips_left"]) for name, row in found.items()}
    assert steps == {
        "error:scorer_failed": (1, 0, 4),
        "duration_s >= 4": (0, 0, 4),
        "border_frac < 0.02": (1, 0, 3),
        "0.5 < motion_mv < 7": (1, 0, 2),
        "text_score < 0.6": (0, 1, 1),
        "kept": (0, 0, 1),
    }
    assert found["kept"]["hours_left"] == pytest.approx(6 / 3600)


def test_the_yield_and_the_joint_survival_of_a_known_run(small: str) -> None:
    found = {row["rule"]: row for row in by_duckdb(small, "yield") if row["kind"] == "video"}
    text = found["text_score < 0.6"]
    assert (text["passes"], text["fails"], text["unknown"], text["reached"]) == (3, 0, 1, 2)
    assert (text["stopped_here"], text["stopped_only_here"]) == (1, 1) and text["hours_only_here"] == pytest.approx(12 / 3600)
    pair = next(
        row for row in by_duckdb(small, "joint") if row["rule_a"].startswith("border") and row["rule_b"].startswith("0.5")
    )
    assert (pair["clips"], pair["pass_a"], pair["pass_b"], pair["pass_both"]) == (4, 3, 3, 2)
    assert pair["lift"] == pytest.approx(2 * 4 / (3 * 3))


def test_quantiles_are_exact(drawn: str) -> None:
    with connect(drawn) as connection:
        for row in by_duckdb(drawn, "quantiles"):
            score, kind = row["score"], row["kind"]
            query = f"SELECT quantile_cont({score}, [0.01, 0.5, 0.95]) AS q FROM clips WHERE status = 'ok' AND kind = '{kind}'"
            exact = rows(connection, query)[0]["q"]
            if exact is None:
                assert row["measured"] == 0 and row["p50"] is None
            else:
                assert [row["p01"], row["p50"], row["p95"]] == pytest.approx(exact, rel=1e-9)


def test_every_clip_is_counted_once(drawn: str) -> None:
    with connect(drawn) as connection:
        clips = rows(connection, "SELECT count(*) AS n FROM clips")[0]["n"]
        measured = {s: rows(connection, f"SELECT count({s}) AS n FROM clips WHERE status = 'ok'")[0]["n"] for s in SCORES}
    for subset in ("plain", "mixed", "all"):
        funnel = [row for row in by_duckdb(drawn, "funnel") if row["subset"] == subset]
        kept = sum(row["clips_left"] for row in funnel if row["step"] == "kept")
        assert sum(row["dropped"] + row["unknown"] for row in funnel) + kept == clips
        assert sum(row["clips"] for row in by_duckdb(drawn, "reasons_codec") if row["subset"] == subset) == clips
    bins: dict[str, int] = {}
    for row in by_duckdb(drawn, "histograms"):
        bins[row["score"]] = bins.get(row["score"], 0) + row["clips"]
    assert bins == {score: n for score, n in measured.items() if n}


def test_a_run_without_clips_has_empty_statistics(tmp_path: Path) -> None:
    analyst_run.make_run(tmp_path, sources=0)
    assert all(not by_duckdb(str(tmp_path), name) for name, one in shipped().items() if not one.needs)
    assert set(SCORES) <= set(CLIPS.names)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and a == b
