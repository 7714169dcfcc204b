"""``python -m zdist``: the ``zdist`` command, also where its script is not on the PATH."""

from zdist.cli import main

main()
