"""A prompt to the embeddings of four text encoders. Start reading in `text_encoders.py`."""
