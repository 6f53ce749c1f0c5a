"""New inputs from human seeds, their labels, the filters between, and the metrics of the set."""
