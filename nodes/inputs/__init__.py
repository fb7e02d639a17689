"""Pieces of node schemas that several nodes share."""
