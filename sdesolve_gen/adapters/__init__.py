"""Models that other code trained, read without running any of it."""
