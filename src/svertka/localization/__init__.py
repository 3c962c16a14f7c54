"""Where in a picture an object is, from a classifier that sees its patches at several scales (Oquab et al. 2014)."""
