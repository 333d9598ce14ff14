"""One file per command that is not a model. `ich.pipeline` defines what each one reads and writes."""
