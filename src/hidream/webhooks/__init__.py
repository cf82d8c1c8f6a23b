"""Webhooks: how a message is signed (`signature`), one attempt to deliver it (`delivery`), how it is `received`.

`outbound` makes the connection, and decides which URLs are allowed. Receivers call `hidream.webhooks.verify`, for
which they need no server.

This package knows URLs, addresses and bytes, but no predictions, keys or rows of deliveries. `server/background` claims
deliveries from the store, calls `delivery.deliver`, and records the results.
"""

from hidream.webhooks.received import verify

__all__ = ["verify"]
