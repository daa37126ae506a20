"""What `verify` looks at."""
