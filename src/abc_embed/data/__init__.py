"""Data sets on disk: what a record is, and how it is read and written (records.py).

Does not: make data (scenes draws its own) or choose from it (train does). No torch here.
"""
