"""Nodes that generate on this computer."""
