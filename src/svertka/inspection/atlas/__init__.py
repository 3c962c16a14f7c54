"""The atlas of a network: pages that show what each unit of each layer responds to."""
