"""The networks and their losses: a slice at a time (cnn), a study at a time (sequence)."""
