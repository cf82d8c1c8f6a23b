"""The record of everything that was accepted, and the queue: one database holds both.

It keeps predictions, API keys, webhooks and workers. Every SQL statement is in this package, which knows neither HTTP
nor images. The API process enqueues tasks and reads results; workers claim tasks and write their results. Start with
`predictions.py`: its docstring has the diagram of a prediction's states.
"""
