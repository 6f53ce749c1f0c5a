"""Before a full run: measure on the user's data, run a small pilot, and say what follows and what does not."""
