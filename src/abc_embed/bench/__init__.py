"""Benchmarks: does the vector follow the instruction? CtrlBench, other evaluations, audits."""
