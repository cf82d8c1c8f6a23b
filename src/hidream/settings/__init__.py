"""Settings: read once, at the edge, from flag > environment > TOML file > default.

`tables.py` declares the settings, and `sources.py` reads them: start there, at `load`. This package knows nothing about
models, servers or databases; it passes frozen values to the code that does.
"""
