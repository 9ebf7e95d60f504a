"""Recipes: functions that return one complete training configuration each."""

from lambdanets.recipes.cifar import cifar as cifar
from lambdanets.recipes.coco import coco as coco
from lambdanets.recipes.digits import digits as digits
from lambdanets.recipes.folder import folder as folder
from lambdanets.recipes.imagenet import imagenet_90 as imagenet_90
from lambdanets.recipes.imagenet import imagenet_350 as imagenet_350
from lambdanets.recipes.nuclei import nuclei as nuclei
from lambdanets.recipes.registry import get_recipe as get_recipe
from lambdanets.recipes.registry import list_recipes as list_recipes
from lambdanets.recipes.registry import miniature as miniature
from lambdanets.recipes.statement import DEVICES as DEVICES
from lambdanets.recipes.statement import Statement as Statement
from lambdanets.recipes.statement import costs as costs
from lambdanets.recipes.statement import statement as statement
