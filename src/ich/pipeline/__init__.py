"""Dependencies of artifacts, their state, and running the tasks that make them."""
