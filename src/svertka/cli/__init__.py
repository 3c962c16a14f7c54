"""The command line: one door, one file a verb."""
