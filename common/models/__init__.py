"""Frozen backbones and trainable heads."""
