"""`python -m opd`."""

from opd.cli import main

main()
