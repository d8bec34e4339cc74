"""Images on disk -> vectors -> search.

`pictures` finds the files, `cache` remembers their vectors by content, `folder` ranks them. Brute
force: the cosine with every image is exact, and for a folder faster than anything clever.
"""
