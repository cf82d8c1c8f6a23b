"""What an API process does beside answering requests; start reading in `loops`."""
