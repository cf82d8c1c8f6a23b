"""The routes, one file per subject: each reads its request, makes one call to the store, and answers.

Each file ends in ROUTES: method, path and function of every route that it has; `app.py` puts them together.
"""
