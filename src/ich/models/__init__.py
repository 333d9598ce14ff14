"""Everything that is fitted on folds and predicts; one file per kind."""
