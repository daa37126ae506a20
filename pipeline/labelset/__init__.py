"""A label set's folder: reading it, and making it."""
