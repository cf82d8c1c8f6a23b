"""One prompt to one image: the HiDream-I1 model, tensors only. Start reading in `pipeline.py`."""
