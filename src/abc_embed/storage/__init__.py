"""What the house keeps on disk, each way of keeping it once.

`files` (written whole or not at all), `hashing` (the name of a content), `json_files` (one reader),
`sqlite` (a file that several processes share), `vector_cache` (vectors found again by content).
"""
