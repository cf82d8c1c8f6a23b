"""The library that Python programs use: `hidream.Pipeline`. Start reading in `pipeline.py`.

Each call has an engine of its own, so that an image does not depend on what else the program generates. Knows no HTTP,
no database and no settings file: all that it is told, it is told by arguments.
"""
