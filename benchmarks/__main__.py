"""Run every benchmark of this folder, one process each: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder = Path(__file__).parent
    known = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    wanted = sys.argv[1:] or known
    for name in wanted:
        if name not in known:
            print(f"benchmarks {name}: there is no such benchmark; there are {', '.join(known)}.")
            return 2
    return max(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode
               for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
