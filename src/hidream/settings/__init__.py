"""Settings: read once, at the edge, from flag > environment > TOML file > default.

What there is stands in `tables.py`, where it is found in `sources.py`: start there, at `load`. This room knows nothing
of models, servers or databases; it hands frozen values to those who do.
"""
