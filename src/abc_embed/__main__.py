"""`python -m abc_embed` is `abc-embed`."""

from abc_embed.cli import main

if __name__ == "__main__":
    main()
