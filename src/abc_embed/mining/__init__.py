"""Hard negatives (paper, section 3.2): captions that nearly fit an image, and are wrong."""
