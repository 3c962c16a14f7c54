"""The studio: pages to collect images, train on them, try the network, look inside, and take it home."""
