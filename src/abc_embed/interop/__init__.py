"""Our models in the hands of other libraries: sentence-transformers and mteb."""
