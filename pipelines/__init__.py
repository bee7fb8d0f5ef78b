"""Recipes, commands, training, evaluation and tracking: the story told from the rooms below."""
