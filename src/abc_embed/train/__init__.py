"""Training: stage 1 (image to caption) and stage 2 (image and instruction to answer).

Read in this order: ``config`` (what can be said), ``sources`` (records to groups), ``batches``
(groups to tensors), ``losses`` (what is minimised), ``gradcache`` (any batch on any memory),
``stages`` (what the two stages train and freeze), ``loop`` (the run itself), ``resume`` (its
checkpoints), ``logbook`` (what is written down), ``recipe`` (all of it from one TOML file).
``curriculum`` makes the backbone of the bundled model, before the two stages.
"""
