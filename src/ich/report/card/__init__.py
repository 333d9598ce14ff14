"""The model card: what a reviewer or user of a trained ensemble must know, from the records of its run."""
