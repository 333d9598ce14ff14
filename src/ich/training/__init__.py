"""Fitting a network and predicting with it: one loop for all of them."""
