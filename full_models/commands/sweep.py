"""``full-models sweep``: a grid of rules and scales from one file."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from full_models.commands.generate import Generate, ShardOptions
from full_models.commands.options import (
    DrawOptions,
    GuidanceOptions,
    ModelOptions,
    Run,
)
from full_models.generation.processes import ProcessOptions, from_first, is_first
from full_models.generation.shard_set import ShardSet
from full_models.models.family import Defaults
from full_models.weights.table import listed
from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.progress import Reporter
from gmm_guidance._runtime.schema import Object, brief, checked, read_toml

# Options of all settings: a sweep loads model, prompts and autoencoder once.
_SHARED = ("mesh", "vae", "prompts", "size")
_MOST_SETTINGS = 10_000
_LONGEST_NAME = 240  # bytes of a file name, of which file systems allow 255


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Generate a set for each setting of a grid; complete ones are skipped."""

    file: Path
    """Grid (TOML): common options, and tables [[rules]] whose options may be lists,
    such as cfg_scale = [1.0, 1.5, 2.0]. Options are those of generate, with
    underscores."""
    out: Path
    """Output directory, with a directory of generate for each setting."""
    model: ModelOptions
    vae: Path | None = None
    """Folder or file of the autoencoder (diffusers) that decodes latents to images;
    none keeps latents."""
    prompts: Path | None = None
    """Prompts of all settings, for models that have them: a file or folder of
    embed-prompts."""
    size: str | None = None
    """Width and height in pixels, for models that draw any."""
    mesh: str = DrawOptions.mesh
    """Devices that divide the samples, the weights of each block and its products."""
    show: bool = False
    """Only show the table of what is done."""
    processes: ProcessOptions = ProcessOptions()

    def run(self, reporter: Reporter) -> list[Path]:
        """Generate what is missing; returns the complete directories."""
        settings = read_grid(self.file, _options())
        commands = [self._command(setting) for setting in settings]
        if not self.show:
            self._fill(commands, reporter)
        if is_first():
            reporter.console.print(_table(settings, commands))
        return [command.out for command in commands if _is_complete(command)]

    def _command(self, setting: Setting) -> Generate:
        shared = {name: getattr(self, name) for name in _SHARED}
        default = Generate(self.model, self.out / setting.name)

        def completed(options: Any) -> Any:
            names = {field.name for field in dataclasses.fields(options)}
            given = shared | setting.options
            return dataclasses.replace(
                options, **{n: v for n, v in given.items() if n in names}
            )

        return dataclasses.replace(
            default,
            draw=completed(default.draw),
            guidance=completed(default.guidance),
            shards=completed(default.shards),
        )

    def _fill(self, commands: list[Generate], reporter: Reporter) -> None:
        checkpoint = self.model.open()
        runs = [Run.of(c.model, c.draw, c.guidance, checkpoint) for c in commands]
        first = runs[0].load()
        if is_first():
            reporter.say(f"{checkpoint.title}; {len(runs)} settings")
        settings = [dataclasses.replace(first, run=run) for run in runs]
        # A mistake in the last setting shows before the first is drawn.
        for command, loaded in zip(commands, settings, strict=True):
            loaded.rule()
            shards = command.shard_set(loaded)
            if command.out.is_dir():
                shards.is_begun(resume=True)
        for command, loaded in zip(commands, settings, strict=True):
            # The same answer in each process.
            done = is_first() and _is_complete(command)
            if not from_first(np.array([done]))[0]:
                command.fill(loaded, reporter, resume=True)


class Setting(NamedTuple):
    """One setting of a grid.

    Attributes:
        name: name of its directory: the rule, and the options that vary within it.
        options: values by option.
    """

    name: str
    options: dict[str, Any]


def read_grid(path: Path, options: dict[str, Any]) -> list[Setting]:
    """Read the settings of a TOML file.

    Its top level holds options of all settings; each table ``[[rules]]`` holds a
    ``name`` and further options. An option may be a list of values: all combinations
    are taken. Options whose value is itself a list (``window``) are then lists of
    lists.

    Args:
        path: the file.
        options: the options that there are, with a value of their type each.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no TOML, has unknown options or values of another type,
            lacks rules, or has two settings of one name.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}.")
    common = read_toml(path, Object)
    rules = checked(common.pop("rules", None) or [], list[Object], f"{path}: rules")
    if not rules:
        raise ValueError(
            f"{path} must have at least one table [[rules]] with a name and scales."
        )
    grids: list[tuple[str, dict[str, list[Any]]]] = []
    for rule in rules:
        name = rule.pop("name", None)
        if not (isinstance(name, str) and name.replace("-", "").isalnum()):
            raise ValueError(
                f"each [[rules]] of {path} needs a name of letters, digits and "
                f"hyphens, got {brief(ValueError(repr(name)))}."
            )
        grids.append((name, _values(path, common | rule, options)))
    total = sum(math.prod(map(len, values.values())) for _, values in grids)
    if total > _MOST_SETTINGS:
        raise ValueError(
            f"{path} has {total} settings, more than {_MOST_SETTINGS}; divide it into "
            f"several files."
        )
    settings = [s for name, values in grids for s in _combinations(name, values)]
    for setting in settings:
        if len(setting.name.encode()) > _LONGEST_NAME or not setting.name.isprintable():
            raise ValueError(
                f"{path}: the name of a setting is that of its directory and must be "
                f"printable and at most {_LONGEST_NAME} bytes long, got "
                f"{brief(ValueError(repr(setting.name)))}."
            )
    counted = Counter(setting.name for setting in settings)
    twice = sorted(name for name, count in counted.items() if count > 1)
    if twice:
        raise ValueError(
            f"each setting of {path} must have its own name, but "
            f"{', '.join(twice[:3])} occurs more than once; name the rules differently."
        )
    return settings


def _values(
    path: Path, given: dict[str, Any], options: dict[str, Any]
) -> dict[str, list[Any]]:
    """The values of each option of a rule."""
    unknown = sorted(given.keys() - options.keys())
    if unknown:
        raise ValueError(
            f"{path} has unknown options {listed(unknown)}; there are "
            f"{', '.join(sorted(options))}."
        )
    values = {}
    for key, value in given.items():
        like = options[key]
        try:
            values[key] = [_like(value, like)]
        except TypeError:
            several = value if isinstance(value, list) and value else [value]
            try:
                values[key] = [_like(v, like) for v in several]
            except TypeError:
                raise ValueError(
                    f"{path}: {key} must be of the type of {like!r}, or a list of such "
                    f"values, got {brief(ValueError(repr(value)))}."
                ) from None
    return values


def _combinations(name: str, values: dict[str, list[Any]]) -> Iterator[Setting]:
    varied = [key for key in values if len(values[key]) > 1]
    for chosen in itertools.product(*values.values()):
        setting = dict(zip(values, chosen, strict=True))
        parts = [f"{key}-{_word(setting[key])}" for key in varied]
        yield Setting("_".join([name, *parts]), setting)


def _like(value: Any, like: Any) -> Any:
    """A value of TOML as an option has it, of the type of another value."""
    if like == () and isinstance(value, list) and all(type(v) is str for v in value):
        return tuple(value)  # the words of a rule
    if isinstance(like, tuple) and isinstance(value, list) and len(value) == len(like):
        return tuple(_like(v, part) for v, part in zip(value, like, strict=True))
    if isinstance(like, float) and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not type(like) or type(value) is int and abs(value) >= 2**63:
        raise TypeError
    return value


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "")


def _options() -> dict[str, Any]:
    """The options that a grid may have, with a value of their type each."""
    likes: dict[str, Any] = Defaults()._asdict() | {"guided_channels": 3}
    for group in (DrawOptions(), GuidanceOptions(), ShardOptions()):
        likes |= {n: v for n, v in vars(group).items() if v is not None}
    return {name: like for name, like in likes.items() if name not in _SHARED}


def _table(settings: list[Setting], commands: list[Generate]) -> Table:
    """What is done, a row for each setting."""
    given = [setting.options for setting in settings]
    varied = sorted(
        name
        for name in set().union(*given)
        if any(options.get(name) != given[0].get(name) for options in given)
    )
    table = Table()
    table.add_column("setting", overflow="fold")
    for title in (*varied, "samples", "state"):
        table.add_column(title)
    for setting, command in zip(settings, commands, strict=True):
        shards = _shards(command)
        done, total = (
            (shards.num_done(), shards.num) if shards else (0, command.draw.num)
        )
        complete = shards is not None and shards.is_complete()
        state = "complete" if complete else "begun" if done else "to do"
        values = [str(setting.options.get(name, "")) for name in varied]
        table.add_row(setting.name, *values, f"{done:,} / {total:,}", state)
    return table


def _shards(command: Generate) -> ShardSet | None:
    return ShardSet.read(command.out) if command.out.is_dir() else None


def _is_complete(command: Generate) -> bool:
    shards = _shards(command)
    return shards is not None and shards.is_complete()
