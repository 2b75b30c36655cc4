"""The one exception for bad input."""


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one sentence that names the input, says what was expected and what to do. The
    command line prints it and exits with code 2.
    """
