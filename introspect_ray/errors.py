"""Errors that jobs print as a single line: what users cause (exit code 2), and what an alarm or a check stopped (1)."""


def one_line(error: BaseException) -> str:
    """The message as one line. An error that was raised in an actor carries the actor's traceback around it."""
    return " ".join(str(getattr(error, "cause", None) or error).split())


class UserError(Exception):
    """Bad input: the message names what is wrong, with the numbers, and the remedy."""


class AlarmError(RuntimeError):
    """A run must stop, and trying again would not help: it is beyond one of its `alarms.*` bounds (the message names
    it, with the numbers, and the remedy), or one of the cases below."""


class RepeatedFailure(AlarmError):
    """A part died `train.max_failures` times in a row without progress. The message says what, how often and where."""
