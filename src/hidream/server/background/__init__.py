"""The background work of an API process: webhooks, retention, abandoned tasks. Start reading in `loops`."""
