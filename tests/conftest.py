"""For all suites: threads that wait must not spin, because servers and tests share the cores (see `cli.py`).

Property tests have the same examples in every `make test`; `make test-long` runs them with the hypothesis profile
`long`, whose examples are new each time, and the tests marked `long` as well.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("short")
