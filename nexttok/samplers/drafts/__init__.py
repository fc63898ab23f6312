"""Where guesses come from: one file per drafter (see samplers/speculative.py)."""
