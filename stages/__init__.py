"""One file a stage: one command of the line, one stage of dvc.yaml, one section of params.yaml."""
