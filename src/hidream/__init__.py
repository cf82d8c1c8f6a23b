"""hidream: the self-hosted home of the HiDream-I1 text-to-image model."""

__version__ = "0.1.0"
