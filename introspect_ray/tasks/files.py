"""Files of rows: whether they can be read, and their lines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError

MOST_NESTED = 64  # levels of lists and objects in a row


def existing_file(path: str, key: str) -> Path:
    """`path` if it is a file with something in it. Raises UserError naming the config key it comes from."""
    file = Path(path)
    if not file.exists():
        raise UserError(f"{file}: no such file; set {key} to an existing one")
    if not file.is_file():
        raise UserError(f"{file} is a folder; set {key} to a file in it")
    try:
        with file.open("rb") as opened:
            empty = not opened.read(1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; check its permissions") from None
    if empty:
        raise UserError(f"{file} is empty; it must hold at least one row")
    return file


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file (.gz or plain), one at a time, without the empty lines at its end.

    A file of empty lines gives one. Raises UserError if the file cannot be read or is not UTF-8.
    """
    offset, empty, found = 0, 0, False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for raw in file:
                text = raw.decode("utf-8" if offset else "utf-8-sig")
                offset += len(raw)
                for line in text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"):
                    if not line:
                        empty += 1
                        continue
                    yield from repeat("", empty)
                    empty, found = 0, True
                    yield line
        if not found:
            yield ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {offset + error.start}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; check the file") from None


def read_json(
    text: str,
    where: str,
    remedy: str,
    *,
    parse_constant: Callable[[str], Any] | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> Any:
    """What a JSON text says. where: begins a message; remedy: ends it. Raises UserError.

    It may be nested MOST_NESTED deep: what reads it later, and writes it into tables, follows it by recursion.
    """
    try:
        found = json.loads(text, parse_constant=parse_constant, parse_float=parse_float)
    except json.JSONDecodeError as error:
        place = f" at line {error.lineno}" if "\n" in text else f" at column {error.colno}"
        raise UserError(f"{where}: not valid JSON ({error.msg}{place}); {remedy}") from None
    except RecursionError:
        raise UserError(f"{where}: nested more than {MOST_NESTED} levels deep; {remedy}") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f"{where}: not valid JSON ({error}); {remedy}") from None
    if text.count("[") + text.count("{") > MOST_NESTED:  # else it cannot be as deep, and is not looked through
        _check_depth(found, where, remedy)
    return found


def _check_depth(found: Any, where: str, remedy: str) -> None:
    level = [found]
    for _ in range(MOST_NESTED):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise UserError(f"{where}: nested more than {MOST_NESTED} levels deep; {remedy}")


def refuse_half_characters(text: str, value: Any, where: str) -> None:
    """Raises UserError for half of a surrogate pair, which JSON can escape (\\ud83d) and nothing else can hold.

    text, value: a JSON text and what it says.
    """
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{where}: {half} is half of a character, the other half is missing; correct it") from None
