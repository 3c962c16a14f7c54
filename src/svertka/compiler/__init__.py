"""Compile a network into a faster one for inference on the CPU."""
