"""Classes shared by the sections of gpu.py: the run, and tables for the report."""

import dataclasses
import pathlib
import time

import timing  # noqa: F401 (puts the library on the path)

import reports


@dataclasses.dataclass
class Run:
    """The settings of a run of gpu.py.

    Attributes:
        quick: whether to use tiny sizes, on a CPU.
        until: when the time is used up, on the clock of `time.monotonic()`.
    """

    device: str
    quick: bool
    seed: int
    folder: pathlib.Path
    npz: str
    config: str
    until: float

    def left(self) -> float:
        return self.until - time.monotonic()

    @property
    def repeats(self) -> int:
        return 1 if self.quick else 5


@dataclasses.dataclass
class Table:
    """Rows (dicts), and the key and format of each column; a missing value is an empty cell."""

    title: str
    columns: dict[str, tuple[str, str]]
    rows: list[dict]

    def markdown(self) -> str:
        cells = [
            [
                '' if row.get(key) is None else form.format(row[key])
                for key, form in self.columns.values()
            ]
            for row in self.rows
        ]
        return f'{self.title}\n\n{reports.markdown(tuple(self.columns), cells)}'


class Failed(Exception):
    """Raised by a section whose tables show an error: (message, tables)."""
