"""Data to train on: reading, cleaning, sample sets, stores of tokens, packing and loading."""
