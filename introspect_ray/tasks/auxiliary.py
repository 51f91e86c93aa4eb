"""Rows of auxiliary, behaviour-only data: chats and plain text of several published shapes (paper §5).

Shapes, by the first of these columns that a row has:
- messages: a list of {role, content};
- conversation: the same (`allenai/WildChat-1M`);
- conversations: a list of {from, value}, from: system, human, gpt (`anon8231489123/ShareGPT_Vicuna_unfiltered`);
- prompt and chosen: one question and its answer (`LLM-LAT/harmful-dataset`). There `chosen` is the refusal and
  `rejected` the harmful answer, so direct refusal (paper §5.2, §E.2) trains on prompt -> chosen;
- text: plain text (`HuggingFaceFW/fineweb`).
A .txt file is plain text. Columns as published in August 2026; the sets were not opened here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from introspect_ray.config.sections import AuxiliaryConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Message
from introspect_ray.tasks.choices import chat
from introspect_ray.tasks.files import text_lines
from introspect_ray.tasks.rows import file_rows, open_rows

SHAPES = ("messages", "conversation", "conversations", "chosen", "text")  # the column that tells the shape
COLUMNS = (*SHAPES, "prompt")
BLOCK = 1 << 20  # characters of a .txt file that are tokenized at a time
Content = tuple[Message, ...] | str


def auxiliary_files(config: AuxiliaryConfig) -> list[Path]:
    """The files of auxiliary.path or auxiliary.hub_id; [] if neither is set. Raises UserError."""
    if config.path is None and config.hub_id is None:
        return []
    return open_rows(config.path, config.hub_id, "auxiliary.path")


def auxiliary_rows(files: list[Path]) -> Iterator[tuple[str, Content]]:
    """(place, chat or text) of every row, one at a time. Raises UserError naming the file, the row and the remedy."""
    for file in files:
        if (file.with_suffix("") if file.suffix == ".gz" else file).suffix == ".txt":
            yield from ((f"{file} block {number}", block) for number, block in enumerate(_blocks(file), start=1))
            continue
        for where, row in file_rows(file, optional=COLUMNS):
            yield where, content_of(row, where)


def content_of(row: Mapping[str, Any], where: str) -> Content:
    """The chat or text of a row. Raises UserError."""
    shape = next((column for column in SHAPES if row.get(column) is not None), None)
    if shape is None:
        raise UserError(
            f"{where}: none of the columns {', '.join(SHAPES)} (found {', '.join(row) or 'none'}); rename the one that "
            "holds the chat or the text"
        )
    if shape == "conversations":
        return chat(row[shape], f"{where}, {shape}", role="from", content="value")
    if shape in ("messages", "conversation"):
        return chat(row[shape], f"{where}, {shape}")
    texts = [row.get(column) for column in (("prompt", shape) if shape == "chosen" else (shape,))]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {' and '.join(('prompt', shape)[-len(texts) :])} must be text; correct the row")
    if shape == "text":
        return str(texts[0])
    return ({"role": "user", "content": str(texts[0])}, {"role": "assistant", "content": str(texts[1])})


def _blocks(file: Path) -> Iterator[str]:
    """A text file in blocks of whole lines, so that a large one is never in memory at once."""
    lines: list[str] = []
    size = 0
    for line in text_lines(file):
        lines.append(line)
        size += len(line) + 1
        if size >= BLOCK:
            yield "\n".join(lines) + "\n"
            lines, size = [], 0
    if lines:
        yield "\n".join(lines)
