"""Our models in the hands of other libraries: one file each, imported when used."""
