"""Training: recipes, optimizers, data and the trainer."""
