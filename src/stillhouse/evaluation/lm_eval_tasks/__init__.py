"""Tasks of lm-evaluation-harness that read rows from local files."""
