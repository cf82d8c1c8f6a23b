"""Alembic's folder: `env.py`, which it runs, and the numbered steps in `versions`."""
