"""The chat set that the quickstart trains on, and how it is made."""
