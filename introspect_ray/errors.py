"""The one error that users cause. Jobs print it as a single line and exit with code 2."""


class UserError(Exception):
    """Bad input: the message names what is wrong, with the numbers, and the remedy."""
