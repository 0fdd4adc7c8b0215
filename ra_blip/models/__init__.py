"""Single-device models: vision tower, Q-Former, fusion, ranker, generator, and their composition."""
