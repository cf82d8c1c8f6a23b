"""HTTP in, JSON out: the WaveSpeed-compatible API in front of the store.

This package reads requests, writes tasks to the store, and reads results from the store and from the object store of
the outputs. It never imports the model, the worker or torch: the worker is a separate process, which `supervisor.py`
keeps alive beside this one.
"""
