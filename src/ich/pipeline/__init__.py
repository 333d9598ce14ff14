"""What is made from what, what state it is in, and making it."""
