"""Benchmarks: does the vector follow the instruction?

Reading order: metrics (ranks and what follows from them), schema (a CtrlBench folder), gate (what
its files alone say), grid, binding and held_out (the questions of tiers G, B and S), drafts (scenes
-> folder), frozen (the versions that everyone has), encoder (any model behind one face), ctrlbench
(every way of asking), scores (every number), run (once per key), report, tables and pictures;
replica builds tier R, sets/ are the evaluations of others, audit looks at any set.
Does not: load a model that nobody named.
"""
