"""The command line. Results go to standard output, progress and errors to standard error.

Bad input is answered with one sentence and exit code 2.
"""

from jaxasr_interp.cli.app import main

__all__ = ["main"]
