"""Output files: encode pixels (`encode`), store files in an object store (`object_store`), and serve them (`serving`).

`location` opens an object store, which is a folder or a bucket. This package knows images and files, but neither
requests nor keys.
"""
