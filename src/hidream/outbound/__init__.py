"""The only way to hosts that strangers name: which URLs may be requested (`targets`), and how (`network`).

Knows URLs, addresses and bytes. It does not know what a request is for: `webhooks` and `server/fetch` do.
"""
