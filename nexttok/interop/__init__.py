"""Released checkpoints in: official state-dict names to nexttok parameters."""
