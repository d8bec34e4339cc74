"""One job on many machines: a data set -> a folder of vectors, on Ray Data.

    source ──► prepare (CPU tasks) ──► embed (an actor a GPU) ──► write (parts) ──► commit (driver)

job.py leads, and alone gives parts their names; stages.py is what runs in Ray's workers.
"""
