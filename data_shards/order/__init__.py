"""Which sample comes when, and what that costs: pure functions of the seed and the manifest."""
