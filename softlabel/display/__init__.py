"""What a person sees of a stage: progress while it works, a few lines when it is done."""
