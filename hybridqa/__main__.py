"""`python -m hybridqa` is the command line."""

from __future__ import annotations

import sys

from hybridqa.cli import main

if __name__ == "__main__":
    sys.exit(main())
