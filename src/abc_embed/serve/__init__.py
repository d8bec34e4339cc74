"""Embeddings over HTTP: five ways to ask, one queue for all requests, one static page."""
