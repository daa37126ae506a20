"""Running a teacher over a source into a label set."""
