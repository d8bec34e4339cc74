"""What is kept on disk, each way of keeping it once: files, hashes, JSON, SQLite, vectors."""
