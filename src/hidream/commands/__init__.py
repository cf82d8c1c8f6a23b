"""Commands that need more than a function of `cli.py`: one module for each, which prints what a room returns."""
