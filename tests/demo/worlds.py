"""The worlds of the demo models, and the options by which a script takes one of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from demo.any_world import World
from demo.illustrated_world import ILLUSTRATED
from demo.shapes_world import SHAPES
from harness.demo_images import Studio

WORLDS = {world.name: world for world in (SHAPES, ILLUSTRATED)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which world, and other places of its files than usual."""
    parser.add_argument("--world", choices=list(WORLDS), default=SHAPES.name)
    add_places(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Other places of a world's files than usual."""
    parser.add_argument("--weights", type=Path, help="weights of the demo model, if not those in nodes/weights")
    parser.add_argument("--state", type=Path, help="folder of the resumable state, if not .host/WORLD")
    parser.add_argument("--files", type=Path, help="folder for the adapters' files, if not nodes/weights")


def chosen(options: argparse.Namespace) -> World:
    """The world that the options say."""
    return placed(WORLDS[options.world], options)


def placed(world: World, options: argparse.Namespace) -> World:
    """A world with its files where the options say."""
    files = replace(world.files, folder=options.files or world.files.folder)
    return replace(world, weights=options.weights or world.weights, state=options.state or world.state, files=files)


def studio(world: World) -> Studio:
    """The model of a world through ComfyUI's own sampling."""
    return Studio(world.weights, world.latent)
