"""The command line of a run: `--preset NAME`, `--config FILE`, dotted overrides, `--print_config`.

Order of precedence, weakest first: the fields' defaults, the preset, the configuration file, the
command line. The preset is found first, because it changes the defaults that all others override.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steinvae.config import Config
from steinvae.config_tree import dotted, from_dict
from steinvae.presets import load_preset

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def make_parser(command: str, description: str, defaults: Config) -> ArgumentParser:
    """A parser of every field of `Config`, refusing unknown keys, with `defaults` as defaults.

    A switch may stand alone for true. Errors: ImportError naming the extra.
    """
    parser_class = _parser_class()
    program = f"python -m steinvae.{command}"
    usage = (
        f"{program} [--preset NAME] [--config FILE] [--section.field VALUE ...] [--print_config]"
    )
    parser = parser_class(prog=program, usage=usage, description=description)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the settings below"
    )
    parser.add_class_arguments(Config)
    fields = dotted(defaults)
    parser.set_defaults(fields)
    for action in parser._actions:
        if isinstance(fields.get(action.dest), bool):
            action.nargs, action.const = "?", True
    return parser


def parse_config(command: str, description: str, argv: Sequence[str] | None = None) -> Config:
    """Parse a command line into a checked `Config`; wrong values end the process with one line."""
    argv = files_first(sys.argv[1:] if argv is None else argv)
    early = _early_arguments(argv)
    bootstrap = make_parser(command, description, Config())
    try:
        defaults = load_preset(early.preset) if early.preset else Config()
    except ValueError as error:
        _fail(bootstrap, error)
    parser = make_parser(command, description, defaults) if early.preset else bootstrap
    config = build_config(parser, parser.parse_args(argv).as_dict())
    presets = (config.preset, *early.of_files)
    other = next((preset for preset in presets if preset != early.preset), early.preset)
    if other != early.preset:
        named = "no preset" if early.preset is None else f"preset {early.preset}"
        parser.error(
            f"a --config file is of preset {other}, the other settings are of {named}: "
            f"give --preset {other} or take `preset` out of the file"
        )
    return config


def files_first(argv: Sequence[str]) -> list[str]:
    """The same arguments, every --config before the others: the parser lets the later one win.

    Several files stay in their order.
    """
    files, others, rest = [], [], list(argv)
    while rest:
        taken = rest[: 2 if rest[0] == "--config" else 1]
        del rest[: len(taken)]
        named = len(taken) == 2 or taken[0].startswith("--config=")  # else its file is missing
        (files if named else others).extend(taken)
    return files + others


def build_config(parser: ArgumentParser, values: dict[str, Any]) -> Config:
    """The configuration in a parsed namespace; a cross-field error is reported as a usage error."""
    values.pop("config", None)
    try:
        return from_dict(values)
    except ValueError as error:
        _fail(parser, error)


def _parser_class() -> type[ArgumentParser]:
    """jsonargparse's parser, with a word on how to write what was meant."""
    try:
        from jsonargparse import ArgumentParser, set_parsing_settings
    except ImportError as error:
        raise ImportError(
            "settings on a command line need jsonargparse, which the extra `train` installs "
            "(pip install 'stein-kernels[train]')"
        ) from error
    set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            super().error(message + _hint(message), ex)

    return Parser


def _hint(message: str) -> str:
    """How to write a list, no value, or the name of a section's method, where it was written
    otherwise."""
    numbers = re.search(r"Got value: (\d+(?:,\d+)*)$", message, re.MULTILINE)
    if numbers and "tuple" in message:
        return f" (write [{numbers[1]}])"
    section = re.search(r'Parser key "(\w+)":\s+Unable to load config', message)
    if section and hasattr(getattr(Config(), section[1], None), "name"):
        return f" (did you mean --{section[1]}.name?)"
    unset = re.match(r"([\w.]+) must be left out", message)
    if unset:
        return f" (--{unset[1]} null leaves it out)"
    return ""


def _early_arguments(argv: Sequence[str]) -> argparse.Namespace:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--config", type=Path, action="append", default=[])
    arguments, _ = early.parse_known_args(argv)
    found = [_preset_in(path) if path.is_file() else None for path in arguments.config]
    if arguments.preset is None and found:
        arguments.preset = found[-1]
    arguments.of_files = [preset for preset in found if preset is not None]
    return arguments


def _preset_in(path: Path) -> str | None:
    """The preset that a file names, known or not. SystemExit where it says something twice."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        twice = _twice(yaml.compose(text, yaml.SafeLoader))
        if twice:
            raise SystemExit(f"steinvae: --config {path} has {twice} twice; YAML keeps the last")
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise SystemExit(f"steinvae: --config {path} is not UTF-8: {error}") from error
    except yaml.YAMLError:
        return None  # the real parser reads the same file next and says where it is malformed
    preset = values.get("preset") if isinstance(values, dict) else None
    return preset if isinstance(preset, str) else None  # the real parser refuses what is no name


def _twice(
    node: Any, prefix: str = "", seen: set[str] | None = None, walked: frozenset[int] = frozenset()
) -> str | None:
    """The first setting that a YAML document has twice, with the line of its repetition."""
    import yaml

    if not isinstance(node, yaml.MappingNode) or id(node) in walked:
        return None
    seen = set() if seen is None else seen  # by dotted names, which a file may have as keys too
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        name = prefix + key.value
        if name in seen:
            return f"{name} (line {key.start_mark.line + 1})"
        seen.add(name)
        inner = _twice(value, f"{name}.", seen, walked | {id(node)})
        if inner:
            return inner
    return None


def _fail(parser: ArgumentParser, error: ValueError) -> NoReturn:
    parser.error(str(error))
    raise SystemExit(2)  # unreachable: error() exits; it tells the type checker so
