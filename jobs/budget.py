"""The error budget: how many sources may be in error before a run is stopped, and what is said of them then."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import pyarrow.parquet as pq

from curation import storage
from curation.errors import CODES
from jobs.inspect import new_table, texts

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
COLUMNS = ["source_id", "path", "status", "error_code"]


class Budget:
    """Counts a run's sources by outcome; it is over once more than `share` of **all** its sources are in error.

    All, not those seen so far: then nothing the rest may bring can mend it, and a bad folder that happens to come first
    stops no run that would have ended within its budget. The verdict while the run works is the one at its end, earlier.
    """

    def __init__(self, run: str, share: float) -> None:
        self.run = run
        self.share = share
        self.states: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.example: dict[str, dict[str, Any]] = {}

    def read(self, units: Sequence[str] | None = None) -> None:
        """Add the sources of these analyzed units, as their tables say; of all without `units`."""
        for table in _each(self.run, "sources", lambda file: pq.read_table(file, columns=COLUMNS), units):
            self.states.update(table["status"].to_pylist())
            self._note(table.filter(table["error_code"].is_valid()).to_pylist())

    def spend(self, result: dict[str, Any]) -> None:
        """Add the sources of one more analyzed unit (the result of `analyze.write_unit`)."""
        self.states.update({state: result[state] for state in ("ok", "rejected", "error")})
        self._note(result["in_error"])

    def _note(self, errors: Sequence[dict[str, Any]]) -> None:
        for row in errors:
            self.codes[row["error_code"]] += 1
            self.example.setdefault(row["error_code"], row)

    @property
    def seen(self) -> int:
        """Sources analyzed so far."""
        return self.states.total()

    @cached_property
    def listed(self) -> int:
        """All sources of the run, analyzed or not: the rows of `units/`."""

        return sum(_each(self.run, "units", lambda file: int(pq.read_metadata(file).num_rows)))

    @property
    def over(self) -> bool:
        """Whether more sources are in error than the budget allows, whatever becomes of the rest."""
        errors = self.states["error"]
        return errors > self.share * self.seen and errors > self.share * self.listed

    @property
    def verdict(self) -> str:
        """One line: how the run stands to its budget."""
        errors = self.states["error"]
        share = f"{errors} of {self.listed} sources failed ({errors / max(self.listed, 1):.1%})"
        rest = self.listed - self.seen
        return f"over the error budget: {share}, error_budget is {self.share:.1%}" + (
            f"; {rest} sources were not looked at any more" if rest else ""
        )

    @property
    def hint(self) -> str:
        """How to look at a source of the table again."""
        return f"look at one again: reelset inspect {shlex.quote(self.run)} --replay SOURCE_ID"

    def table(self) -> "Table":
        """The error codes, most frequent first, each with its share, its meaning and one source to look at."""
        shown = new_table("code", "sources", "share", "meaning", "for example", title="Sources in error")
        for code, number in self.codes.most_common():
            example = self.example[code]
            share = f"{number / max(self.seen, 1):.1%}"
            shown.add_row(*texts(code, number, share, CODES.get(code, ""), f"{example['source_id']}\n{example['path']}"))
        return shown


def _each(run: str, table: str, read: Callable[[BinaryIO], T], units: Sequence[str] | None = None) -> Iterator[T]:
    """What `read` takes from the file of each unit (or of these units) of a table, in order."""
    folder = storage.join(run, table)

    def one(name: str) -> T:
        with storage.open_read(storage.join(folder, name)) as file:
            return read(file)

    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(one, storage.names(folder, ".parquet") if units is None else [f"{u}.parquet" for u in units])
