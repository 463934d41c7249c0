"""The small language model that the examples train: its text, its network, its training."""
