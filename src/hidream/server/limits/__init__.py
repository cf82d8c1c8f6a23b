"""What keeps one client from taking everything: concurrency, rates, failed authentication, and disk space."""
