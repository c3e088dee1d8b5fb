"""How much memory a run needs, what its device has, and what to do when the two don't fit."""
