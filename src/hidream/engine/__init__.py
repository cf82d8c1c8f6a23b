"""Many requests, one denoising step at a time, on one thread.

Between any two steps requests may join, leave or overtake each other; each keeps what belongs to it, so that its
image does not depend on who shared the step. `request` and `scheduler` decide who takes part and know only numbers:
no tensors, no model. `runner` and `loop` carry it out. Nobody here knows HTTP, the store or files. Start reading in
`scheduler.py`.
"""
