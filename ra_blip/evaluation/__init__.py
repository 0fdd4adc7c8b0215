"""Measuring: metrics as pure functions, and the run that fills ``metrics.json``."""
