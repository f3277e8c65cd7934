"""Objectives that need no label."""
