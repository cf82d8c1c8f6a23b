"""Many requests, one denoising step at a time, on one thread.

Between any two steps, requests may join, leave or overtake each other. Each request keeps its own state, so its image
does not depend on the others. `request` and `scheduler` decide who takes part, and know only numbers: no tensors, no
model. `runner` and `loop` compute. This package knows no HTTP, store or files. Start reading in `scheduler.py`.
"""
