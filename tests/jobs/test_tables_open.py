"""The tables of a run open as they are in the tools that analysts have."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.jobs.run_samples import make_run

TABLES = ("sources", "clips", "series", "frames", "costs", "selection/small", "produced/small")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("open")
    make_run(place)
    return place


def by_duckdb(place: Path) -> list[dict[str, Any]]:
    found = duckdb.execute(f"SELECT * FROM '{place}/*.parquet'")
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def by_polars(place: Path) -> list[dict[str, Any]]:
    import polars

    return polars.read_parquet(f"{place}/*.parquet").to_dicts()


def by_datasets(place: Path) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        cache = str(place.parent.parent / f"cache-{place.name}")
        files = str(place / "*.parquet")
        return list(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("opened", [by_duckdb, by_polars, by_datasets])
def test_rows_are_the_rows(run: Path, table: str, opened: Callable[[Path], list[dict[str, Any]]]) -> None:
    assert opened(run / table) == pq.read_table(run / table).to_pylist()


@pytest.mark.parametrize("table", TABLES)
def test_pandas_has_the_rows(run: Path, table: str) -> None:
    import pandas

    frame, whole = pandas.read_parquet(run / table), pq.read_table(run / table)
    assert list(frame.columns) == whole.column_names and len(frame) == whole.num_rows > 0
    for name in whole.column_names:
        assert frame[name].isna().tolist() == whole[name].is_null().to_pylist()
        if frame[name].dtype == float:
            assert frame[name].dropna().tolist() == whole[name].drop_null().to_pylist()
