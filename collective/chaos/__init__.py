"""Disturb training jobs on purpose, and judge how they take it: ``collective chaos``."""
