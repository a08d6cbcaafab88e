"""`python -m polyformer` is the command line."""

from __future__ import annotations

from polyformer.cli.main import main

if __name__ == "__main__":
    main()
