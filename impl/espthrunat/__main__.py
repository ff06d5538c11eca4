"""`python -m espthrunat`."""

from .cli import main

main()
