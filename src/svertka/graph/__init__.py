"""Analysis of any network: its layers, shapes, receptive fields and cut points."""
