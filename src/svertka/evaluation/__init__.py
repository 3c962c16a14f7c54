"""Judging classifiers."""
