"""`python -m sept` is the `sept` command."""

from .cli import main

main()
