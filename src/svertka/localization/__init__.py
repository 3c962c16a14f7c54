"""Where in a picture an object is, from a classifier that slides over it at several scales (Oquab et al. 2014)."""
