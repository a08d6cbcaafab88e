"""Training: recipes, data and the loop."""

from __future__ import annotations

from polyformer.training.recipe import Recipe as Recipe
from polyformer.training.recipe import parse_recipe as parse_recipe
from polyformer.training.recipe import read_recipe as read_recipe
from polyformer.training.run import Summary as Summary
from polyformer.training.run import check_recipe as check_recipe
from polyformer.training.run import train as train
