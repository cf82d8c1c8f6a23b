"""The transformer: from parts to a velocity, for any mix of requests. Start reading in `transformer.py`."""
