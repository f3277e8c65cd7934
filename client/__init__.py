"""A site of a federation: its settings, its local training and its state."""
