"""Requests to hosts that clients name: which URLs are allowed (`targets`), and how requests are sent (`network`).

There is no other way to such hosts. This package knows URLs, addresses and bytes. It does not know what a request is
for: `webhooks` and `server/fetch` do.
"""
