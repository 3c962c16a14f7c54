"""Any network as a graph of its layers."""
