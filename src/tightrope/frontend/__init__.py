"""From other people's networks to ours."""
