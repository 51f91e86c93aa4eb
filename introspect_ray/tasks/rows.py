"""Rows of data sets: JSONL, JSON, CSV, TSV and Parquet files, and their copies on the Hugging Face Hub."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError, one_line
from introspect_ray.hub import snapshot
from introspect_ray.records import Case
from introspect_ray.tasks.files import existing_file, read_json, refuse_half_characters, text_lines
from introspect_ray.tasks.source import CaseSource

log = logging.getLogger(__name__)

BATCH_ROWS = 1024  # rows of a Parquet file that are decoded at a time
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
HUB_FILES = tuple(f"*{ending}" for ending in FORMATS)
TOO_LARGE = {"HuggingFaceFW/fineweb": "sample/10BT/000_00000.parquet"}
Placed = tuple[str, Any]  # ("cases.jsonl line 7", the row)


def json_lines(path: Path, what: str = "row") -> Iterator[Any]:
    """The values of a JSONL file (.gz or plain), one per line. Raises UserError naming the line that is no JSON."""
    for n, line in enumerate(text_lines(path), start=1):
        value = read_json(line, f"{path} line {n}", f"write one {what} per line")
        refuse_half_characters(line, value, f"{path} line {n}")
        yield value


def parquet_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with all `columns` and those of `optional` that it has. Raises UserError."""
    import pyarrow.lib
    import pyarrow.parquet as parquet

    from introspect_ray.cases.table_file import check_file

    try:
        check_file(path)
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            present = file.schema_arrow.names
            missing = [column for column in columns if column not in present]
            if missing:
                raise UserError(
                    f"{path}: column {missing[0]!r} is missing (found {', '.join(present)}); the rows need "
                    f"{', '.join(columns)}"
                )
            wanted = [*columns, *(column for column in optional if column in present)]
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
    except (pyarrow.lib.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable parquet file: {one_line(error)}; check the file") from None


def file_rows(path: Path, columns: Sequence[str] = (), optional: Sequence[str] = ()) -> Iterator[Placed]:
    """(place, row) of every row of a file, by its ending: .jsonl(.gz), .json (a list), .csv, .tsv or .parquet.

    Each row is an object that has all `columns`; of a Parquet file only `columns` and `optional` are read. Raises
    UserError for another ending, and for a row without one of the columns, with the names that it has.
    """
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    numbered: Iterator[tuple[int, Any]]
    if ending == ".jsonl":
        unit, numbered = "line", enumerate(json_lines(path), start=1)
    elif ending == ".json":
        unit, numbered = "row", enumerate(_json_list(path), start=1)
    elif ending in (".csv", ".tsv"):
        unit, numbered = "row", enumerate(_csv_rows(path, "\t" if ending == ".tsv" else ","), start=1)
    elif ending == ".parquet":
        unit, numbered = "row", enumerate(parquet_rows(path, columns, optional), start=1)
    else:
        raise UserError(f"{path}: rows are read from files that end in {', '.join(FORMATS)}; convert or rename it")
    for number, row in numbered:
        where = f"{path} {unit} {number}"
        check_columns(row, columns, optional, where)
        yield where, row


def check_columns(row: Any, columns: Sequence[str], optional: Sequence[str], where: str) -> None:
    """Raise UserError unless `row` is an object with all `columns`; the message names the known and the found ones."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}; write one row as an object")
    missing = [column for column in columns if column not in row]
    if missing:
        known = ", ".join(columns) + (f" (and may have {', '.join(optional)})" if optional else "")
        raise UserError(
            f"{where}: column {missing[0]!r} is missing (found {', '.join(map(str, row)) or 'none'}); rows have {known}"
        )


def _json_list(path: Path) -> list[Any]:
    text = "\n".join(text_lines(path))
    rows = read_json(text, str(path), "write a list of rows")
    refuse_half_characters(text, rows, str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of rows, found {type(rows).__name__}; write [row, row, ...]")
    return rows


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, delimiter=delimiter)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}; check the file") from None


def hub_files(hub_id: str, patterns: Sequence[str] = HUB_FILES, remedy: str = "set task.path") -> list[Path]:
    """Local copies of a hub data set's files, sorted; where some are named after a train split, only those.

    hub_id: "owner/name", or "owner/name:PATTERN" for other files than `patterns`. Raises UserError with `remedy` if the
    data set cannot be fetched or has no such file, or if it is too large to be fetched without a pattern.
    """
    hub_id, _, pattern = hub_id.partition(":")
    if pattern:
        patterns = [pattern]
    elif example := TOO_LARGE.get(hub_id):
        raise UserError(f"the data set {hub_id!r} is terabytes of files: name some of them, e.g. {hub_id}:{example}")
    try:
        folder = Path(snapshot(hub_id, repo_type="dataset", allow_patterns=list(patterns), etag_timeout=10))
    except Exception as error:  # network, HTTP, authentication and cache errors share no base class
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the data set {hub_id!r} cannot be fetched from the hub ({first}); {remedy}") from None
    found = sorted({file for pattern in patterns for file in folder.rglob(pattern)})
    if not found:
        raise UserError(f"the data set {hub_id!r} has no files {', '.join(patterns)}; {remedy}")
    return [file for file in found if "train" in str(file.relative_to(folder))] or found


def row_files(path: str, key: str) -> list[Path]:
    """`path` if it is a file, or the files of rows in the folder `path`, sorted; others there (a licence) are ignored.

    key: the config key of `path`. Raises UserError if there is no such file, or none in the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [existing_file(path, key)]
    found = sorted(file for file in folder.iterdir() if file.name.removesuffix(".gz").endswith(FORMATS))
    if not found:
        raise UserError(f"{folder}: no file in it ends in {', '.join(FORMATS)}; set {key} to a file or folder of rows")
    return [existing_file(str(file), key) for file in found]


def open_rows(path: str | None, hub_id: str | None, key: str, patterns: Sequence[str] = HUB_FILES) -> list[Path]:
    """The files of a data set: `path` if it is given, else those of `hub_id`. key: the config key of `path`."""
    if path is not None:
        return [existing_file(path, key)]
    if hub_id is None:
        raise UserError(f"{key} is not set: give a local file of the set's rows ({', '.join(FORMATS)})")
    return hub_files(hub_id, patterns, f"set {key} to a local file of its rows")


class Drops:
    """Counts the rows that make no case, by reason, with the place of the first one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, where: str, reason: str) -> None:
        self.counts[reason] += 1
        self._first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """Example: "3 rows: no row without the cue has the same question (the first: x.jsonl line 4)"."""
        return [f"{n} rows: {reason} (the first: {self._first[reason]})" for reason, n in self.counts.items()]


def counted_source(name: str, cases: Callable[[Drops], Iterator[Case]]) -> CaseSource:
    """A source of the cases that `cases` makes; the rows that it drops are reported once, in one line per reason.

    name: of the set, in messages. `cases` reads from the start at every call. Cases that repeat an id are dropped and
    counted by load_cases, so an id must be made from a case's content. Raises UserError if no row makes a case.
    """
    reported = False

    def rows() -> Iterator[Case]:
        nonlocal reported
        drops, made = Drops(), 0
        for case in cases(drops):
            made += 1
            yield case
        if not made:
            raise UserError(f"{name}: no row makes a case; {'; '.join(drops.lines()) or 'the files have no rows'}")
        for line in [] if reported else drops.lines():
            log.warning("%s: dropped %s", name, line)
        reported = True

    return CaseSource(f"{name} case", rows, lambda case, where: case, drop_repeats=True)
