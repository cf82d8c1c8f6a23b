"""Pixels to bytes (`encode`), bytes to a place (`location` opens it, `place` says what it can do), and out (`serving`).

Knows images and the folder or bucket they lie in; neither requests nor who asked for them.
"""
