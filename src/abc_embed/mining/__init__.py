"""Hard negatives (paper, section 3.2): captions that nearly fit an image, and are wrong.

search.py   image vectors × caption vectors -> the pool of each image, exactly, in blocks
draw.py     a pool -> the few that are trained on
vectors.py  items -> vectors on disk, remembered, so that a killed run goes on
mine.py     a records file -> the same records with mined negatives, and a report
sheet.py    a page of examples to look at
"""
