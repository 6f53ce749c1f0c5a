"""The scores, each a small module: what rows it applies to, and what one answer counts for."""
