"""Carrying features over to another task: what learns, and what is computed once."""
