"""Strangers' image files: what they are, what is in them, decoded in a process of their own."""
