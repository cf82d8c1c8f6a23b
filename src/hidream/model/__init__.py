"""One prompt to one picture: the HiDream-I1 model, tensors only. Start reading in `pipeline.py`."""
