"""Label sets made from label sets: convert and merge."""
