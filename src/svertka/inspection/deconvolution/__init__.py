"""Deconvolution (Zeiler & Fergus 2014): projections of units to pixels."""
