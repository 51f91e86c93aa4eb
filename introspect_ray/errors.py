"""Errors that jobs print as a single line: what users cause (exit code 2), and what an alarm stopped (exit code 1)."""


class UserError(Exception):
    """Bad input: the message names what is wrong, with the numbers, and the remedy."""


class AlarmError(RuntimeError):
    """A run went beyond one of its `alarms.*` bounds: the message names it, with the numbers, and the remedy."""
