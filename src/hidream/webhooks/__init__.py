"""Webhooks: how a message is signed (`signature`), and one attempt to deliver it (`delivery`).

`outbound` makes the connection, and decides which URLs are allowed.

This package knows URLs, addresses and bytes, but no predictions, keys or rows of deliveries. `server/background` claims
deliveries from the store, calls `delivery.deliver`, and records the results.
"""
