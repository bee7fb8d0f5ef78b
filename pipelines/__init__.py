"""Recipes, commands, training, evaluation and tracking, built from the three packages below."""
