"""`python -m probe`: the command line."""

from probe.cli.main import main

main()
