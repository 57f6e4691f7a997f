"""`python -m probe`: the command line."""

from probe.cli.staying.client import main

main()
