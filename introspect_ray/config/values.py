"""What no value of a configuration may be: beyond what files and numbers can hold, or a secret.

A configuration is written into run.json, into the tracker and onto the terminal. So it names where a secret is found
(an environment variable), and never holds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator

from introspect_ray.errors import UserError

if TYPE_CHECKING:
    from introspect_ray.config.sections import RunConfig

MOST_NESTED, MOST_VALUES = 32, 100_000
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes of a file's name, and of its whole path, on Linux
_PATHS = ("output_dir", "cache_dir", "path", "test_path", "roles", "balance", "words", "instruction")  # ends of keys
_URI = re.compile(r"[A-Za-z][\w+.-]*://\S*")
_SECRET_NAME = re.compile(r"pass(word|wd)?|pwd|secret|token|credential|api[-_]?key|authorization|sig(nature)?", re.I)
_SECRET_FIELD = re.compile(r"password|passwd|secret|credential|api[-_]?key|authorization|access[-_]?token", re.I)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WAYS = {
    "tracking.uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
    "environment; of a database its own way (PGPASSWORD or ~/.pgpass, MySQL's option file)",
    "judge.endpoint": "an environment variable that judge.key_env names",
}


def _switched(value: object) -> object:
    """Versions up to 0.4 had a switch for layers, which files and run.json may hold."""
    return ("none", "layers")[value] if isinstance(value, bool) else value


# train.activation_checkpointing
Checkpointing = Annotated[Literal["auto", "none", "elementwise", "layers"], BeforeValidator(_switched)]


def value_problem(cfg: RunConfig) -> str | None:
    """What is wrong with the first value that cannot be used or must not be written down, and the remedy; else None.

    A message on a secret does not repeat it.
    """
    for key, value in _leaves(cfg.model_dump(), ""):
        if isinstance(value, int) and abs(value) >= 1 << 63:
            return f"{key} is a number beyond 64 bits: lower it"
        if isinstance(value, str) and (problem := _unusable(key, value) or _secret(key, value)):
            return problem
    return _secret_fields(cfg)


def check_size(data: Any, what: str) -> None:
    """Raises UserError for data (mappings, lists and plain values) that is nested more than MOST_NESTED deep or, with
    all that its YAML aliases repeat, has more than MOST_VALUES values. what: begins the message."""
    level, count = [data], 0
    for _ in range(MOST_NESTED):
        level = [child for value in level for child in _children(value)]
        count += len(level)
        if count > MOST_VALUES:
            raise UserError(f"{what} has more than {MOST_VALUES} values: a configuration is smaller, correct it")
        if not level:
            return
    raise UserError(f"{what} is nested more than {MOST_NESTED} levels deep: correct it")


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all plain values; those of a list have the list's key."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _leaves(child, key)
    else:
        yield key, value


def _unusable(key: str, text: str) -> str | None:
    if "\0" in text:
        return f"{key} has a NUL character, which no file name and no chat can hold: correct it"
    try:
        path = text.encode()
    except UnicodeEncodeError as error:
        return f"{key} is not valid text (character {error.start}): write it in UTF-8"
    longest = max(map(len, path.split(b"/")))
    if (key.rpartition(".")[2] in _PATHS or key.endswith("policy")) and (
        longest > _LONGEST_NAME or len(path) > _LONGEST_PATH
    ):
        return (
            f"{key} is a path of {len(path)} bytes with a name of {longest}, and a file has {_LONGEST_PATH} and "
            f"{_LONGEST_NAME} at most: shorten it"
        )
    return None


def _secret(key: str, text: str) -> str | None:
    if key.endswith("key_env") and not _VARIABLE.fullmatch(text):
        return (
            f"{key} is no name of an environment variable: give the name of the one that holds the key, not the key "
            "itself, which would be written into run.json"
        )
    if not _URI.fullmatch(text):
        return None
    try:
        parts = urlsplit(text)
        http = parts.scheme in ("http", "https") and parts.username is not None  # a token may stand there
        named = any(_SECRET_NAME.fullmatch(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        return f"{key} is no valid address: correct it"
    if parts.password is None and not http and not named:
        return None
    way = next((way for name, way in _WAYS.items() if key.endswith(name)), "the environment")
    return f"{key} holds a password or token, which would be written into run.json and the tracker: give it by {way}"


def _secret_fields(cfg: RunConfig) -> str | None:
    """Fields of judge.request that look like keys: the request is written down too."""
    for section, judge in (("judge", cfg.judge), ("judge.second", cfg.judge.second)):
        for key, value in _leaves(judge.request if judge else {}, f"{section}.request"):
            if value is not None and _SECRET_FIELD.search(key.removeprefix(f"{section}.request")):
                return f"{key} looks like a secret, which would be written into run.json: give it by judge.key_env"
    return None
