"""Files of rows: their lines, and one message for what cannot be read."""

import gzip

import pytest

from introspect_ray.errors import UserError
from introspect_ray.tasks.files import existing_file, read_json, text_lines


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "x line 1: nested more than 64 levels deep; mend it"),
        ('{"a":' * 65 + "1" + "}" * 65, "x line 1: nested more than 64 levels deep; mend it"),
        ("9" * 5000, r"x line 1: not valid JSON \(Exceeds the limit .*; mend it"),
        ("{", r"x line 1: not valid JSON \(.* at column 2\); mend it"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(text, says):
    with pytest.raises(UserError, match=says) as caught:
        read_json(text, "x line 1", "mend it")
    assert "\n" not in str(caught.value)


def test_json_of_many_values_is_not_deep():
    assert read_json('[{"a": [1]}' + ', {"a": [1]}' * 99 + "]", "x", "")[99] == {"a": [1]}
