"""Our models in other libraries' hands.

export.py                 a folder that sentence-transformers loads; needs no library
sentence_transformers.py  the module that such a folder names
mteb.py                   an mteb encoder, and CtrlBench as an mteb task
"""
