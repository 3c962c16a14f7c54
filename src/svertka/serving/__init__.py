"""Serve classifiers over HTTP, with a page to upload images to."""
