"""`python -m jaxasr_interp`."""

from jaxasr_interp.cli import main

main()
