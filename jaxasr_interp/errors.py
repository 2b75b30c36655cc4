"""The one exception for bad input, and the check of the least that a number may be."""


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one sentence that names the input, says what was expected and what to do. The
    command line prints it and exits with code 2.
    """


def check_least(least: int, **named: int | None) -> None:
    """Raise `InputError` if a number, which is given by its name, is below the least it may be."""
    for name, value in named.items():
        if value is not None and value < least:
            raise InputError(f"{name} is {value}: expected at least {least}.")
