"""The engine: its stories, its bills, its refusals."""
