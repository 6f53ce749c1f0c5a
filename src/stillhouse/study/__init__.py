"""Studies: a grid of runs, resumable, and what it says."""
