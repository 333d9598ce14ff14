"""What a trained ensemble looks at and which labels look wrong: maps, figures, tables, out of plain arrays."""
