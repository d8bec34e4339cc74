"""Models that a benchmark can measure: ours, those of other libraries, and baselines."""
