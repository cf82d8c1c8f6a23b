"""Connections and HTTP/1.1 below the application: accepting, parsing, time-outs, and fair starts of requests."""
