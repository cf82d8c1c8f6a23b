"""Where the parts of a model live, what that costs, and when they move. Start reading in `plan.py`."""
