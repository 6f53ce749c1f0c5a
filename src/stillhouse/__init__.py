"""Stillhouse: distil large language models into small ones that are good at your own work."""
