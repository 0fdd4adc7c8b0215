"""Metrics: pure functions without torch, one file per family."""
