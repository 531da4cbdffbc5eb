"""The benchmarks are programs: what they share lies beside them, on the path as when they are run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
