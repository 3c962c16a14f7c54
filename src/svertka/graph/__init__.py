"""Analysis of any network: its layers, sizes, receptive fields, and where it can be cut."""
