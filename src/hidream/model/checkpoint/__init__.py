"""From published files to modules with weights. Start reading in `checkpoint.py`."""
