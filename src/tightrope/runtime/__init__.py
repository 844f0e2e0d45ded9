"""What the machine offers and what work costs on it: memory, time, plans."""
