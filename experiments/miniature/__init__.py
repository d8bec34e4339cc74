"""The paper in miniature: its findings tried on scenes, with a model that a CPU trains in a minute.

    plan     the conditions, the seeds, and the configuration of each run
    ground   what all runs share: base model, scenes on disk, negatives mined once
    source   stage-2 batches: whole image groups, or the same pairs in other company
    measure  unseen scenes: captions, and instructions
    work     one run, from configuration to a line of the results
    run      all runs in worker processes, resumable
    report   the lines beside the paper's findings; figure draws them

`make miniature` runs all of it.
"""
