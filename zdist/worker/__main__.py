"""``python -m zdist.worker``: one worker process."""

from __future__ import annotations

import sys

from zdist.worker.process import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
