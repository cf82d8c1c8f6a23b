"""hidream: the self-hosted home of the HiDream-I1 text-to-image model."""
