"""`python tools/bench COMMAND`."""

from __future__ import annotations

import sys
from pathlib import Path

# The root makes `tools.bench` importable; this folder, which Python puts first, would shadow other packages'
# modules.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.bench.commands import main  # noqa: E402

if __name__ == "__main__":
    main()
