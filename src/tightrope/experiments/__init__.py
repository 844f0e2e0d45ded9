"""From a configuration to a run: the composition root."""
