"""A compiler for networks: a captured network becomes a faster one for inference on the CPU."""
