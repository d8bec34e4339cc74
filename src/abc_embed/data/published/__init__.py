"""The published data sets: fetched, indexed and read straight out of their tar parts."""
