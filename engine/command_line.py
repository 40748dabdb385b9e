"""The command line of a configuration dataclass: one parser per command, with grouped help."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from core.command_line import parse_command
from core.errors import UserError
from core.nearest import did_you_mean
from core.program import in_same_spelling
from core.settings import Group, OfStudyAlone, SetBySweep
from data.sources import with_demo_data
from encoders.names import HUB
from engine.config import RENAMED, RunSettings, alternatives, marked, marks, read_config

C = TypeVar("C")

Presets = Mapping[str, Callable[[], C]]

Field = tuple[str, Any, Any]
"""Name, type and default of a field of a dataclass that is built for tyro."""

EARLY = (
    "recipe",
    "config",
    "dataset",
    "data-root",
    "task",
    "method",
    "optimiser",
    "encoder",
    "norm",
    "stem",
    "init",
    "generalist",
)
"""Flags that determine the defaults of the others, read before the command line is parsed."""

MOVED_FLAGS = {"classify.task": "data.task", "classify.split-seed": "split-seed"}
"""Flags of a sweep in version 0.1 that now belong to its data set."""
RENAMED_FLAGS = {
    negation + old.replace("_", "-"): negation + new.replace("_", "-")
    for old, new in RENAMED.items()
    for negation in ("", "no-")
}
"""Flags of version 0.1, without group, and their present names."""


def parse(
    presets_for: Callable[[Mapping[str, str]], Presets[C]],
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    examples: Sequence[str] = (),
    program: str | None = None,
) -> C:
    """Parse a command line into a configuration.

    A preset (`--recipe`) or a saved configuration (`--config FILE`) sets every default; flags change single settings.
    Without either, the preset is `default` if `--data-root` is set, else `demo`, which is small enough for two CPU
    cores and uses the embedded synthetic data. The file of `--init` or `--generalist` determines the encoder.

    Args:
        presets_for: from the flags of `EARLY` that are set to the presets of the command, by name.
        description: shown at the top of the help.
        arguments: the command line; None: that of this process.
        examples: command lines shown at the end of the help.
        program: name of the command in the help; None: that of the configuration's package.

    Raises:
        UserError: if a preset, data set, configuration file or setting is wrong.
    """
    arguments = _in_present_spelling(sys.argv[1:] if arguments is None else arguments)
    early = {name: value for name in EARLY if (value := _value_of(name, arguments)) is not None}
    identity = _identity(early)
    presets = presets_for({**early, "encoder": early.get("encoder") or identity.get("encoder", "")})
    name = early.get("recipe") or ("default" if "data-root" in early else "demo")
    if name not in presets:
        near = did_you_mean(name, presets)
        raise UserError(f"--recipe {name}: there is no such preset; choose {', '.join(presets)}{near}")
    default = presets[name]()
    program = program or "python -m " + type(default).__module__.partition(".")[0]
    if "config" in early:
        default = read_config(type(default), Path(early["config"]).expanduser(), default)
    default = _with_dataset(default, early)
    _refuse_settings_of_other_layouts(default, arguments)
    identity = {k: v for k, v in identity.items() if k not in early and hasattr(default, k)}
    default = replace(default, **identity)  # type: ignore[type-var]
    line = _class_for_tyro(default, tuple(presets), name)
    description += (
        "\n\nA preset (--recipe) or the config.json of a run (--config) sets every default below; flags change single "
        "settings. Default preset: `default` with --data-root, `demo` without."
    )
    return _filled(default, parse_command(line, program, examples, args=arguments, description=description))


def with_data(config: C) -> C:
    """The configuration with the embedded synthetic data in place of a missing `--data-root`."""
    return replace(config, data=with_demo_data(config.data))  # type: ignore[type-var, attr-defined]


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag on a command line, flags in their present spelling; None if the flag is absent."""
    value = None
    for position, argument in enumerate(arguments):
        name, equals, rest = argument.partition("=")
        if name == f"--{flag}":
            value = rest if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return value


def _in_present_spelling(arguments: Sequence[str]) -> list[str]:
    """The arguments with hyphens in flags, and with flags and values of version 0.1 replaced by the present ones."""
    present: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            present.append(word)
            continue
        path = flag[2:].replace("_", "-")
        *groups, name = (RENAMED_FLAGS.get(part, part) for part in MOVED_FLAGS.get(path, path).split("."))
        prefix = "--" + "".join(f"{group}." for group in groups)
        if name not in ("clip", "unlabelled-splits"):
            present.append(prefix + name + equals + value)
            continue
        values = [value] if equals else list(islice(words, 1))
        if name == "unlabelled-splits":
            present += [prefix + name, *("all" if value == "everyone" else value for value in values)]
        elif values != ["maxpool2d"]:  # clip was the largest gradient norm, or the one way to pool frames
            present += [prefix + "max-grad-norm", *values]
    return present


def _identity(early: Mapping[str, str]) -> dict[str, str]:
    """The encoder, its norm and its stem that the file of `--init` or `--generalist` determines."""
    source = early.get("init") or early.get("generalist")
    if source is None or not (source.startswith(HUB) or Path(source).expanduser().exists()):
        return {}
    from encoders.identify import identify, identify_repository  # imports torch, slow

    identity = identify_repository(source) if source.startswith(HUB) else identify(Path(source).expanduser())
    if identity is None:
        return {}
    known = {"encoder": identity.architecture, "norm": identity.norm, "stem": identity.stem}
    return {name: value for name, value in known.items() if value}


def _with_dataset(config: C, early: Mapping[str, str]) -> C:
    """The configuration with the data set layout of `--dataset`; settings that both layouts have are kept."""
    layouts = alternatives(type(config), "data")
    layout = early.get("dataset")
    if layout is None or not layouts:
        return config
    if layout not in layouts:
        raise UserError(f"--dataset {layout}: choose {', '.join(layouts)}{did_you_mean(layout, layouts)}")
    data: Any = config.data  # type: ignore[attr-defined]
    common = {f.name for f in fields(layouts[layout])} & {f.name for f in fields(data)} - {"dataset"}
    data = layouts[layout](**{name: getattr(data, name) for name in common})
    return replace(config, data=data)  # type: ignore[type-var]


def _refuse_settings_of_other_layouts(config: Any, arguments: Sequence[str]) -> None:
    """Raise a UserError for a flag that belongs to another data set layout only; it names that layout."""
    layouts = alternatives(type(config), "data")
    known = {f.name for f in fields(config)} | {f.name for f in fields(config.data)} if layouts else set()
    for layout in layouts.values():
        for name in {f.name for f in fields(layout)} - known:
            flag = name.replace("_", "-")
            if (value := _value_of(flag, arguments)) is not None:
                fitting = " or ".join(each for each in layouts if hasattr(layouts[each], name))
                raise UserError(f"--{flag} {value} goes with --dataset {fitting}, not with {config.data.dataset}")


def _class_for_tyro(default: Any, presets: Sequence[str], preset: str) -> type:
    """Build the dataclass that tyro parses: a nested dataclass for each group in `--help`, its flags without prefix.

    Args:
        default: the configuration that holds the default of every flag.
        presets: names of all presets.
        preset: name of the default preset.
    """
    kind: Any = type(default)
    groups: dict[str, list[Field]] = {}
    nested: list[Field] = []
    title, taken = "", _offered(kind)
    for name in _field_names(kind):
        title = next((mark.title for mark in marks(kind)[name] if isinstance(mark, Group)), title)
        value = getattr(default, name)
        if not is_dataclass(value):
            groups.setdefault(title, []).append(_flag(kind, name, value))
        elif layouts := alternatives(kind, name):
            # the data set; where the command has a setting of the same name (a sweep's --task), it is --data.task
            flags = [
                _flag(type(value), f.name, getattr(value, f.name), prefixed=f.name in taken) for f in fields(value)
            ]
            # the type of `dataset` is the name of one layout; the flag takes all
            text = f"Layout of the data set: {', '.join(layouts)}. It determines which data options exist."
            layout = tyro.conf.arg(help=text, metavar="|".join(layouts), prefix_name=False)
            groups[name] = [("dataset", Annotated[str, layout], flags[0][2]), *flags[1:]]
        else:
            # of a run's configuration inside a sweep, the settings that the sweep does not set
            nested.append(_prefixed_group(name, value, _set_outside(kind, type(value))))
    recipe = tyro.conf.arg(help="Preset that sets every default below.")
    config = tyro.conf.arg(help="Saved or hand-written configuration (JSON or YAML) that sets defaults below.")
    members: list[Field] = [
        ("recipe", Annotated[Literal[tuple(presets)], recipe], field(default=preset)),
        ("config", Annotated[Path | None, config], field(default=None)),
    ]
    run_flags = groups.pop("run", None)
    members += [_group(title.replace(" ", "_"), title, flags) for title, flags in groups.items()]
    members += nested
    if run_flags:
        members.append(_group("run", "run", run_flags))
    return make_dataclass(kind.__name__, members, frozen=True, kw_only=True)


def _offered(kind: type) -> set[str]:
    """The settings of a configuration that are flags without prefix."""
    return {f.name for f in fields(kind)} - {*marked(kind, OfStudyAlone)}


def _set_outside(study: type, part: type) -> set[str]:
    """The settings of a run's configuration inside a study that the study sets, so that they have no prefixed flag."""
    return {*marked(part, SetBySweep), *_offered(study)}


@contextmanager
def flags_of_part(study: Any, name: str) -> Iterator[None]:
    """Name the flags of a part of a study as the user passes them: `--pretrain.steps` in messages about `--steps`."""
    part = getattr(study, name)
    own = {f.name for f in fields(part)} - _set_outside(type(study), type(part))

    def with_prefix(flag: re.Match[str]) -> str:
        return f"--{name}.{flag[1]}" if flag[1].replace("-", "_") in own else flag[0]

    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w-])--([a-z][a-z-]*)", with_prefix, str(error))) from None


def _group(name: str, title: str, flags: list[Field]) -> Field:
    group = make_dataclass(title, flags, frozen=True, kw_only=True)
    return name, group, field(default_factory=group)


def _prefixed_group(name: str, value: Any, excluded: Collection[str]) -> Field:
    """The group of a nested configuration, whose flags have its name as prefix, except the `excluded` settings."""
    kind = type(value)
    members = []
    for setting in (each for each in _field_names(kind) if each not in excluded):
        default = getattr(value, setting)
        if is_dataclass(default):
            members.append(_prefixed_group(setting, default, ()))
        else:
            members.append(_flag(kind, setting, default, prefixed=True))
    return _group(name, kind.__name__, members)


def _flag(kind: type, name: str, default: Any, *, prefixed: bool = False) -> Field:
    """The field for tyro of a setting, with its documentation as help."""
    hint = get_type_hints(kind)[name]
    flag = tyro.conf.arg(help=in_same_spelling(_documentation(kind).get(name, "")) or None, prefix_name=prefixed)
    return name, Annotated[hint, flag], field(default=default)


def _filled(default: C, parsed: Any) -> C:
    """The configuration with the parsed values, which `_class_for_tyro` distributed over groups."""
    changed: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        nested: Any = getattr(default, name, None)
        if is_dataclass(nested):
            with flags_of_part(default, name) if isinstance(nested, RunSettings) else nullcontext():
                changed[name] = _filled(nested, value)
        if is_dataclass(value):  # a group; that of the data set holds settings of the command, too
            inner = vars(nested) if is_dataclass(nested) else {}
            changed |= {setting: parsed for setting, parsed in vars(value).items() if setting not in inner}
        elif hasattr(default, name):  # not --recipe and --config, which have set the defaults already
            changed[name] = value
    return replace(default, **changed)  # type: ignore[type-var]


def _field_names(kind: type) -> list[str]:
    """Names of the fields: first those that the class itself defines, then the inherited ones."""
    names = [name for each in kind.__mro__ if is_dataclass(each) for name in inspect.get_annotations(each)]
    return list(dict.fromkeys(names))


@cache
def _documentation(kind: type) -> dict[str, str]:
    """The docstring below each field, from the class itself or else from the nearest base class that has one."""
    documentation: dict[str, str] = {}
    for each in reversed([each for each in kind.__mro__ if is_dataclass(each)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if documented and isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                documentation[statement.target.id] = " ".join(following.value.value.split())  # type: ignore[attr-defined]
    return documentation
