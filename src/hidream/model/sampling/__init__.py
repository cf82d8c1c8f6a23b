"""Noise levels and steps, and which steps need the model. Start reading in `sampler.py`."""
