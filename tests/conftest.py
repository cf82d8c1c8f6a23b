"""For all suites: threads that wait must not spin, because servers and tests share the cores (see `cli.py`)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
