"""The record of everything that was accepted, and the queue, in one database.

Predictions, API keys and the workers that were seen. Every statement that touches the database is in this
room; it knows neither HTTP nor pictures. The API writes submissions here and reads results; workers claim
from here and write back. Start at `predictions.py`, whose docstring holds the diagram of a prediction's
states.
"""
