"""The routes, one file per subject. A route reads its request, makes one call to the store, and responds.

Each file ends with ROUTES: the method, path and function of each of its routes. `app.py` registers them.
"""
