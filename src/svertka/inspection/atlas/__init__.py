"""The atlas of a network: a page for every layer, with what each unit responds to."""
