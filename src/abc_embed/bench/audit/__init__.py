"""Which questions of a set need both the picture and the words."""
