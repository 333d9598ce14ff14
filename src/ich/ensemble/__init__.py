"""From models' logits to probabilities and decisions; numpy, pandas, LightGBM, Optuna, never torch."""
