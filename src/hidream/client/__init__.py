"""The client of a hidream server: `client.Client` (start reading there), and `async_client.AsyncClient`.

The logic exists once, without input and output: `calls` and `events` are generators that yield effects (`effects`),
such as a request to send or a pause. `runners` carries the effects out with httpx, for threads and for event loops. The
two clients only name the calls. `retries` decides what is repeated, and `responses` what a response means.

This package knows the API of the server, but neither the server nor the model: it imports no torch and no numpy.
"""
