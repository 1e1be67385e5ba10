"""Run the command line: python -m jumpahead.cli."""

from jumpahead.cli import main

main()
