"""`python -m foveate` and `torchrun -m foveate`."""

from foveate.cli.main import main

main()
