"""Our models under other libraries' calls."""
