"""One file per layer type: facts about the layer, nothing about relaxations."""
