"""Where artifacts lie and how they are written."""
