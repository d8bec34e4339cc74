"""Benchmarks: does the vector follow the instruction?

Reading order: metrics (ranks and what follows from them), held_out (unseen scenes, their questions,
the candidates), scenes (the benchmark and its controls), report (records on disk, tables).
Does not: load a model; whoever calls hands one over.
"""
