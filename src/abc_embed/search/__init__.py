"""Images on disk -> vectors -> search."""
