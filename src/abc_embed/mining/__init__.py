"""Hard negatives (paper, section 3.2): captions that nearly fit an image, and are wrong.

rows.py     a data set -> its different captions, which images are equal, rows that cannot be used
plan.py     settings; disk, memory and time, before anything starts
embed.py    items -> shards of vectors, in one process or several; shards.py: those files
search.py   image vectors × caption vectors -> pools, block by block; engines.py: faiss and memory;
            pools.py: rules, order and counts; parts.py: pools on disk
draw.py     a pool -> the few that are trained on
mine.py     all of it
output.py   Parquet or records, and Parquet back for training; report.py, sheet.py: what to look at
"""
