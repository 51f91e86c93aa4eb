"""What all jobs share on the command line: --config, key=value overrides, --dry-run, exit codes. Light imports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from introspect_ray.errors import AlarmError, UserError, one_line


@dataclass(frozen=True)
class Arguments:
    """A parsed command line. `overrides` are (dotted key, parsed value); `flags` a job's own options by name."""

    config: str | None
    overrides: dict[str, Any]
    dry_run: bool
    resume: bool
    overwrite: bool
    flags: dict[str, Any] = field(default_factory=dict)


Flags = Callable[[argparse.ArgumentParser], None]


def parse(description: str, argv: list[str] | None = None, flags: Flags | None = None) -> Arguments:
    """`flags` adds a job's own options. Raises UserError for a malformed override; argparse itself exits with 2 on
    unknown flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file of config keys")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print config and placement, exit")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint in output_dir")
    group.add_argument("--overwrite", action="store_true", help="replace an existing output_dir of ours")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. kl_weight=0.1 supervision.rule=online")
    if flags:
        flags(parser)
    known = vars(parser.parse_intermixed_args(argv))
    pairs = [parse_override(text) for text in known.pop("overrides")]
    shared = {name: known.pop(name) for name in ("config", "dry_run", "resume", "overwrite")}
    return Arguments(overrides=dict(pairs), flags=known, **shared)


def main(job: Callable[[Arguments], None], description: str, flags: Flags | None = None) -> None:
    """Run a job: bad input is one line on stderr and exit code 2, an alarm one line and 1, the rest a traceback."""
    try:
        job(parse(description, flags=flags))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except AlarmError as error:
        print(f"stopped: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `dotted.key=value`; the value is read as YAML, with 1e-5 read as a number. Raises UserError."""
    key, eq, value = text.partition("=")
    if not eq or not key:
        raise UserError(f"override {text!r} is not of the form key=value, e.g. kl_weight=0.1")
    import yaml

    try:
        parsed = yaml.safe_load(value) if value.strip() else None
    except yaml.YAMLError:
        raise UserError(f"override {text!r}: the value is not valid YAML") from None
    return key, _numbers(parsed)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as a string; pydantic would accept it, lists of them would not sort."""
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "0123456789.-+" else value
        except ValueError:
            return value
    return value
