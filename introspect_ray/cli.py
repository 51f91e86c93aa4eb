"""What all commands share: --config, key=value overrides, --dry-run, --help SECTION, exit codes. Light imports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from introspect_ray import signals
from introspect_ray.errors import AlarmError, Halted, Outage, UserError, one_line
from introspect_ray.log_levels import DEFAULT, LEVELS


@dataclass(frozen=True)
class Arguments:
    """A parsed command line."""

    config: str | None
    overrides: dict[str, Any]  # parsed values by dotted key
    dry_run: bool
    resume: bool
    overwrite: bool
    flags: dict[str, Any] = field(default_factory=dict)  # a command's own options by name
    names: tuple[str, ...] = ()  # positional words without "=" or with "/" before it, where a command takes them
    log_level: str = DEFAULT


Flags = Callable[[argparse.ArgumentParser], None]


def parse(
    description: str,
    argv: Sequence[str] | None = None,
    flags: Flags | None = None,
    *,
    prog: str | None = None,
    takes_names: bool = False,
) -> Arguments:
    """Read a command line (None: this process's). `flags` adds a command's own options.

    Raises UserError for a malformed override or an unknown --help SECTION; argparse itself exits with 2 on unknown
    options.
    """
    parser = argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("-h", "--help", nargs="?", metavar="SECTION", action=_Help, help="this text, or config keys")
    parser.add_argument("--config", metavar="FILE", help="YAML file of config keys")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print config and placement, exit")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint in output_dir")
    group.add_argument("--overwrite", action="store_true", help="replace an existing output_dir of ours")
    levels = f"what is logged, of all processes from info on ({DEFAULT})"
    parser.add_argument("--log-level", choices=LEVELS, default=DEFAULT, help=levels)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. kl_weight=0.1 supervision.rule=online")
    if flags:
        flags(parser)
    known = vars(parser.parse_intermixed_args(argv))
    words = known.pop("overrides")
    # A path may hold "=", as the trials of a sweep do; a key has no slash.
    names = tuple(word for word in words if "=" not in word or "/" in word.partition("=")[0]) if takes_names else ()
    pairs = [parse_override(word) for word in words if word not in names]
    shared = {name: known.pop(name) for name in ("config", "dry_run", "resume", "overwrite", "log_level")}
    known.pop("help")
    return Arguments(overrides=dict(pairs), flags=known, names=names, **shared)


class _Help(argparse.Action):
    """--help prints the usage and names the sections of the config; --help SECTION prints the keys of one."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, topic: object, __: str | None = None) -> None:
        from introspect_ray.config.reference import help_text, sections

        if topic is None:
            names = ", ".join(section.name for section in sections())
            parser.epilog = f"--help SECTION prints the config keys of a section: {names}."
            parser.print_help()
        else:
            print(help_text(str(topic)))
        parser.exit()


def run(job: Callable[[], None], go_on: str = "") -> None:
    """Run a command. One line on stderr and an exit code: bad input 2, an alarm or an outage 1, SIGINT 130, SIGTERM
    143. The rest is a traceback. go_on: how the command goes on after a signal."""
    with signals.handled():
        try:
            job()
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)
        except (AlarmError, Outage) as error:
            print(f"stopped: {one_line(error)}", file=sys.stderr)
            sys.exit(1)
        except (KeyboardInterrupt, Halted) as error:
            _stopped(one_line(error), go_on)
        except Exception as error:
            if signals.asked() is None:
                raise
            _stopped(f"while it ended, {type(error).__name__}: {one_line(error)}", go_on)


def _stopped(how: str, go_on: str) -> None:
    parts = [f"stopped: {signals.asked() or 'SIGINT'}", *([how] if how else [])]
    print(": ".join(parts) + (f"; {go_on}" if go_on else ""), file=sys.stderr, flush=True)
    sys.exit(signals.exit_code())


def check_new(file: Path) -> None:
    """For commands that write one file: nothing is overwritten. Raises UserError if it is there."""
    if file.exists():
        raise UserError(f"{file} exists already and is left alone: name another --out, or delete it first")


def parse_override(text: str) -> tuple[str, Any]:
    """Split `dotted.key=value`; the value is read as YAML, and 1e-5 as a number. Raises UserError.

    The value of a key of type text stands for itself, since YAML would read "not: {label}" as a mapping; only null, a
    text in quotation marks and the list of a sweep are read as YAML there.
    """
    key, eq, value = text.partition("=")
    if not eq or not key:
        raise UserError(f"override {text!r} is not of the form key=value, e.g. kl_weight=0.1")
    import yaml

    from introspect_ray.config import is_text

    if value.strip() and value.strip() not in ("null", "~") and value.lstrip()[0] not in "\"'[" and is_text(key):
        return key, value
    try:
        parsed = yaml.safe_load(value) if value.strip() else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date or a number that is none
        raise UserError(
            f"override {text!r:.200}: the value is not valid YAML; correct it, or put a text that is meant to begin so "
            "into quotation marks of its own ('...' or \"...\") inside those of the shell"
        ) from None
    return key, _numbers(parsed)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as a string. pydantic would accept it, but lists of such strings would sort as text."""
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "0123456789.-+" else value
        except ValueError:
            return value
    return value
