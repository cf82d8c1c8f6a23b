"""Pixels to bytes (`encode`), and bytes to a place from which they are read back or downloaded (`files`).

Knows pictures and the folder they lie in; neither requests nor who asked for them.
"""
