"""The command line of a run: `--preset NAME`, `--config FILE`, dotted overrides, `--print_config`.

Order of precedence, weakest first: the fields' defaults, the preset, the configuration file, the
command line. The preset is found first, because it changes the defaults that all others override.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from steinvae.config import Config
from steinvae.config_tree import from_dict, to_dict
from steinvae.presets import PRESETS, load_preset

SECTIONS = ("data", "model", "method", "optimizer", "trainer", "evaluation")


def make_parser(command: str, description: str, defaults: Config) -> ArgumentParser:
    """A parser of every field of `Config`, refusing unknown keys, with `defaults` as defaults."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    program = f"python -m steinvae.{command}"
    usage = (
        f"{program} [--preset NAME] [--config FILE] [--section.field VALUE ...] [--print_config]"
    )
    parser = ArgumentParser(prog=program, usage=usage, description=description)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the settings below"
    )
    parser.add_class_arguments(Config)
    parser.set_defaults(_flat(to_dict(defaults)))
    return parser


def parse_config(command: str, description: str, argv: Sequence[str] | None = None) -> Config:
    """Parse a command line into a checked `Config`; wrong values end the process with one line."""
    early = _early_arguments(argv)
    bootstrap = make_parser(command, description, Config())
    try:
        defaults = load_preset(early.preset) if early.preset else Config()
    except ValueError as error:
        _fail(bootstrap, error)
    parser = make_parser(command, description, defaults) if early.preset else bootstrap
    return build_config(parser, parser.parse_args(argv).as_dict())


def build_config(parser: ArgumentParser, values: dict[str, Any]) -> Config:
    """The configuration in a parsed namespace; a cross-field error is reported as a usage error."""
    values.pop("config", None)
    try:
        return from_dict(values)
    except ValueError as error:
        _fail(parser, error)


def _early_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--config", type=Path)
    arguments, _ = early.parse_known_args(argv)
    if arguments.preset is None and arguments.config is not None and arguments.config.is_file():
        arguments.preset = _preset_in(arguments.config)
    return arguments


def _preset_in(path: Path) -> str | None:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        return None  # the real parser reads the same file next and says where it is malformed
    preset = values.get("preset") if isinstance(values, dict) else None
    return preset if preset in PRESETS else None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _fail(parser: ArgumentParser, error: ValueError) -> NoReturn:
    parser.error(str(error))
    raise SystemExit(2)  # unreachable: error() exits; it tells the type checker so
