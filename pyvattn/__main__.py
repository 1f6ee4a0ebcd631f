"""``python -m pyvattn`` is the command ``pyvattn``."""

from pyvattn.cli import main

main()
