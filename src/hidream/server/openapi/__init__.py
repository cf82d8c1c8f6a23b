"""The OpenAPI document: every route with its requests and responses, for client generators and fuzzers.

It is written by hand, because the routes read their bodies themselves. `tests/server/test_openapi.py` compares it with
the registered routes and with real responses. Start in `document.py`.
"""
