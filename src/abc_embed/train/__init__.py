"""Training: stage 1 (image to caption) and stage 2 (image and instruction to answer).

Read in this order: ``config`` (what can be said), ``sources`` (records to groups), ``batches``
(groups to tensors), ``loader`` (by worker processes, ahead of the model),
``losses`` (what is minimised), ``gradcache`` (any batch on any memory),
``processes``, ``gather`` and ``sharding`` (any number of processes: what they agree on, whose
candidates, whose weights), ``stages`` (what the two stages train and freeze), ``loop`` (the run
itself), ``resume`` (its checkpoints), ``logbook`` and ``trackers`` (what is written down, and
where else), ``recipe`` (all of it from one TOML file, which ``tables`` reads). Beside it:
``dry_run`` and ``memory`` (a recipe tried out), ``plot`` (curves of runs).
``curriculum`` makes the backbone of the bundled model, before the two stages.
"""
