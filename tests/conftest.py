"""For all suites: threads that wait must not spin, because servers and tests share the cores (see `cli.py`).

`make test-long` runs the tests marked `long` as well, and property tests with the hypothesis profile `long`.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
settings.register_profile("short", max_examples=40, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("short")
