"""Request bodies: JSON, forms and files. Long parts go to files on disk while they arrive; start reading in `body`."""
