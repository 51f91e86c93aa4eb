"""Files of rows: their lines, and one message for what cannot be read."""

import gzip

import pytest

from introspect_ray.errors import UserError
from introspect_ray.tasks.files import existing_file, text_lines


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "empty").touch()
    problems = {"none": r"no such file; set task\.path to", ".": r"is a folder; set task\.path to", "empty": "is empty"}
    for name, message in problems.items():
        with pytest.raises(UserError, match=message):
            existing_file(str(tmp_path / name), "task.path")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"a\rb\r\n", ["a", "b"]),
        (b"\n\na\n\n\n", ["", "", "a"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        ("ä\u2028b\nc".encode(), ["ä\u2028b", "c"]),
        (b"\n\n", [""]),
    ],
)
def test_lines_are_those_of_the_whole_text(tmp_path, content, lines):
    """They equal those of text mode (universal line ends, a byte order mark), less the empty lines at the end."""
    for name, data in (("x", content), ("x.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        assert list(text_lines(tmp_path / name)) == lines
    whole = (tmp_path / "x").read_text(encoding="utf-8-sig")
    assert whole.rstrip("\n").split("\n") == lines


def test_bytes_that_are_no_text_are_refused(tmp_path):
    """The message counts the wrong byte from the start of the file."""
    (tmp_path / "x").write_bytes(b"abc\nd\xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 5\)"):
        list(text_lines(tmp_path / "x"))
    (tmp_path / "y.gz").write_bytes(b"plain text")
    with pytest.raises(UserError, match="cannot be read"):
        list(text_lines(tmp_path / "y.gz"))
