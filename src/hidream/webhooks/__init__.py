"""Telling a receiver that a task has ended: who may be told (`targets`), how it is signed, one attempt (`delivery`).

`network` is the way out to hosts that strangers name: webhooks take it, and so does `server/fetch`.

Knows URLs, addresses and bytes; never a prediction, a key or the rows in which deliveries wait: their store keeps
them, and whoever delivers reads there, calls `delivery.deliver`, and writes back what it says.
"""
