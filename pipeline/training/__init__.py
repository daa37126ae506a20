"""Training a student on stored labels."""
