"""Untrusted image files: inspected, and decoded in a separate process."""
