"""Recipes: functions that return the complete configuration of a training run.

To add a recipe, write a module in this folder with a function decorated with `recipe`, whose docstring has a
title and the sections Follows, Expect or Measured, Needs, and Command. No other file changes.
"""

from lambdanets.recipes.audio import audio as audio
from lambdanets.recipes.cifar import cifar as cifar
from lambdanets.recipes.coco import coco as coco
from lambdanets.recipes.cost import TrainingCost as TrainingCost
from lambdanets.recipes.describe import DEVICES as DEVICES
from lambdanets.recipes.describe import Description as Description
from lambdanets.recipes.describe import costs as costs
from lambdanets.recipes.describe import describe as describe
from lambdanets.recipes.digits import digits as digits
from lambdanets.recipes.finetune import finetune as finetune
from lambdanets.recipes.folder import folder as folder
from lambdanets.recipes.imagenet import imagenet_90 as imagenet_90
from lambdanets.recipes.imagenet import imagenet_350 as imagenet_350
from lambdanets.recipes.nuclei import nuclei as nuclei
from lambdanets.recipes.registry import find_recipe as find_recipe
from lambdanets.recipes.registry import get_recipe as get_recipe
from lambdanets.recipes.registry import import_recipes
from lambdanets.recipes.registry import list_recipes as list_recipes
from lambdanets.recipes.registry import miniature as miniature
from lambdanets.recipes.registry import recipe as recipe
from lambdanets.recipes.text import text as text

import_recipes(__path__)
