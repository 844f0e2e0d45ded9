"""Records of runs and of certified images: schema, reading and writing. No torch."""
