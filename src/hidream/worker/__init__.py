"""The process that owns the model, and the only place where store, model, safety and outputs meet.

It claims tasks from the store, draws them on the one model thread, checks, encodes and stores the images,
and writes the outcome back. It knows nothing of HTTP: the API process talks to it through the database alone.
"""
