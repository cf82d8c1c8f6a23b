"""The commands of `hidream`, one module each. `cli.py` runs them."""
