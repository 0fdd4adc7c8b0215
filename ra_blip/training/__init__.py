"""Stages, losses and the one loop that trains them."""
