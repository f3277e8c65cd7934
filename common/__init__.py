"""What both sides need; no Flower here but in `wire.py`."""
