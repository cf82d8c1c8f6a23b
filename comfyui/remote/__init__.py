"""Nodes that generate on a server: a hidream server, or the hosted API."""
