"""Errors that a command prints as one line: bad input (exit code 2), and what an alarm, a check or an outage
stopped (1)."""


def one_line(error: BaseException) -> str:
    """The message as one line, without the traceback that an error raised in an actor carries in its own message."""
    return " ".join(str(getattr(error, "cause", None) or error).split())


class UserError(Exception):
    """Bad input: the message names what is wrong, with the numbers, and the remedy."""


class AlarmError(RuntimeError):
    """A run must stop, and trying again would not help: it is beyond one of its `alarms.*` bounds, or a subclass says
    why. The message names the bound, with the numbers, and the remedy."""


class Outage(RuntimeError):
    """A service did not answer, or not now; asking again later may help. Raised to a caller it stayed away for longer
    than the patience there is (patience.py), and counts as a failure of the attempt. Nothing in the config is wrong."""


class Interrupted(Exception):
    """Training stopped to go on with other workers, from a checkpoint. It is no failure; the message says why."""


class Halted(Exception):
    """The job was asked to end (SIGINT, SIGTERM), and did so where it can go on. The message says where."""


class Incomplete(AlarmError):
    """A run has its results, but its record lacks labels, rows or cases. The message names them, and the remedy."""


class RepeatedFailure(AlarmError):
    """A part died `train.max_failures` times in a row without progress. The message says what, how often and where."""
