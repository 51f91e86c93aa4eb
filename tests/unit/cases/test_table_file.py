"""A table's file says of every damaged byte that it is damaged, and is plain Parquet to everyone else."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect_ray.cases.table_file import check_file, from_bytes, to_bytes
from tests.damage import cuts, flips

TABLE = pa.table(
    {"case_id": [f"c{i}" for i in range(50)], "x": [i / 7 for i in range(50)], "n": [None, *range(49)]},
    metadata={"format": "a 1"},
)


@pytest.mark.parametrize("one_group", [False, True])
def test_what_is_written_is_read(one_group):
    data = to_bytes(TABLE, one_group)
    assert from_bytes(data).equals(TABLE, check_metadata=True) and data == to_bytes(TABLE, one_group)
    assert from_bytes(data, ["n"]).equals(TABLE.select(["n"]))
    assert pq.read_table(pa.BufferReader(data)).equals(TABLE)
    with pytest.raises(ValueError, match="it has no column 'y'"):
        from_bytes(data, ["x", "y"])


def test_an_empty_table_is_read(tmp_path):
    data = to_bytes(TABLE.slice(0, 0), True)
    assert from_bytes(data).equals(TABLE.slice(0, 0))


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    """A bit in each byte of the file, in memory and on disk."""
    data, file = to_bytes(TABLE), tmp_path / "x"
    file.write_bytes(data)
    check_file(file)
    for at, damaged in flips(data, len(data)):
        with pytest.raises(ValueError, match="checksum"):
            from_bytes(damaged)
        if at % 10 == 0:
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="checksum"):
                check_file(file)
    for damaged in cuts(data, 50):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            from_bytes(damaged)


def test_files_without_a_checksum_are_read_and_their_pages_checked(tmp_path):
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink, write_page_checksum=True, compression="none")
    data = sink.getvalue().to_pybytes()
    assert from_bytes(data).equals(TABLE)
    at = data.index(b"c17")
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        from_bytes(data[:at] + b"C" + data[at + 1 :])
    for _, damaged in flips(data, 300):  # never another error than the one that says so
        try:
            from_bytes(damaged)
        except ValueError as error:
            assert "\n" not in str(error)
