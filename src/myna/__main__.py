"""`python -m myna`: the command line."""

from myna.app.cli import main

main()
