"""HTTP in, JSON out: the WaveSpeed-compatible API in front of the store.

Reads requests, writes them to the store, reads results from it and from the outputs' folder. It never imports
the model, the worker or torch: the worker is another process, which `supervisor.py` keeps alive beside this
one.
"""
