"""The generated world: named things on a coloured ground, and all that can be asked about them.

Scenes are made by NumPy and Pillow alone, from a seed.
"""
