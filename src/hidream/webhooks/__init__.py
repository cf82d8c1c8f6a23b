"""Telling a receiver that a task has ended: how the message is signed (`signature`), and one attempt (`delivery`).

The connection is made by `outbound`, which also says which URLs may be called.

Knows URLs, addresses and bytes; never a prediction, a key or the rows in which deliveries wait: their store keeps
them, and whoever delivers reads there, calls `delivery.deliver`, and writes back what it says.
"""
