"""`python -m app` is `cogvx`; `torchrun -m app train ...` starts ranks of the trainer."""

from __future__ import annotations

import sys

from app.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
