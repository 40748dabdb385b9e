"""Command lines made from configuration dataclasses: one parser per command, its help in groups."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from core.command_line import parse_command
from core.errors import UserError
from core.settings import Group, SetBySweep
from data.sources import with_demo_data
from engine.config import RENAMED, RENAMED_VALUES, alternatives, marked, marks, read_config

C = TypeVar("C")

Presets = Mapping[str, Callable[[], C]]

Member = tuple[str, Any, Any]
"""Name, type and default of a field of a dataclass that is made for tyro."""

EARLY = ("recipe", "config", "dataset", "data-root", "task", "encoder", "norm", "init", "generalist")
"""Flags that decide about the defaults of the others, looked up before the command line is parsed."""

MOVED = {"classify.task": "data.task", "classify.split-seed": "split-seed"}
"""Flags of a sweep in version 0.1 that now belong to its data set."""


def parse(
    presets_for: Callable[[Mapping[str, str]], Presets[C]],
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    examples: Sequence[str] = (),
) -> C:
    """The configuration that a command line asks for.

    A preset (`--recipe`) or a saved configuration (`--config FILE`) gives every default; flags change single settings.
    Without either, the preset is `default` on the user's own data (`--data-root`) and `demo`, small enough for two
    CPU cores, on the embedded synthetic data. The file of `--init` or `--generalist` determines the encoder.

    Args:
        presets_for: the presets of a command, by name, given the flags of `EARLY` that are set.
        description: shown at the top of the help.
        arguments: of the command line; None: those of this process.
        examples: command lines shown at the end of the help.

    Raises:
        UserError: if a preset, data set, configuration file or setting is wrong.
    """
    arguments = [_renamed(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    arguments = _without_clip(_renamed_values(arguments))
    early = {name: value for name in EARLY if (value := _value_of(name, arguments)) is not None}
    identity = _identity(early)
    presets = presets_for({**early, "encoder": early.get("encoder") or identity.get("encoder", "")})
    name = early.get("recipe") or ("default" if "data-root" in early else "demo")
    if name not in presets:
        raise UserError(f"--recipe {name}: there is no such preset; choose {', '.join(presets)}")
    default = presets[name]()
    program = "python -m " + type(default).__module__.partition(".")[0]
    if "config" in early:
        default = read_config(type(default), Path(early["config"]).expanduser(), default)
    default = _with_dataset(default, early)
    _refuse_settings_of_other_layouts(default, arguments)
    default = replace(default, **{k: v for k, v in identity.items() if k not in early})  # type: ignore[type-var]
    line = _line_class(type(default), default, tuple(presets), name)
    description += (
        "\n\nA preset (--recipe) or the config.json of a run (--config) sets every default below; flags change single "
        "settings. Default preset: `default` with --data-root, `demo` without."
    )
    return _filled(default, parse_command(line, program, examples, args=arguments, description=description))


def with_data(config: C) -> C:
    """The configuration with the embedded synthetic data in place of a missing `--data-root`."""
    return replace(config, data=with_demo_data(config.data))  # type: ignore[type-var, attr-defined]


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag on a command line; None if it is not there."""
    value = None
    for place, argument in enumerate(arguments):
        name, equals, given = argument.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") == flag:
            value = given if equals else next(iter(arguments[place + 1 : place + 2]), None)
    return value


def _renamed(argument: str) -> str:
    """A flag of version 0.1 under its present name (`--trust`, `--no-mirror`, `--segment.views.flip`)."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    flag = MOVED.get(flag.replace("_", "-"), flag)
    *groups, name = flag.replace("_", "-").split(".")
    negated = "no-" if name.startswith("no-") else ""
    parts = [*groups, name.removeprefix(negated)]
    parts = [RENAMED.get(part.replace("-", "_"), part).replace("_", "-") for part in parts]
    return "--" + ".".join([*parts[:-1], negated + parts[-1]]) + equals + value


def _renamed_values(arguments: Sequence[str]) -> list[str]:
    """`--unlabelled-splits everyone` of version 0.1 was `all`."""
    old = {(RENAMED[name].replace("_", "-"), value): new for (name, value), new in RENAMED_VALUES.items()}
    renamed = list(arguments)
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.rpartition(".")[2].removeprefix("--").partition("=")
        if equals and (flag, value) in old:
            renamed[place] = argument.removesuffix(value) + old[flag, value]
        elif place + 1 < len(renamed):
            renamed[place + 1] = old.get((flag, renamed[place + 1]), renamed[place + 1])
    return renamed


def _without_clip(arguments: Sequence[str]) -> list[str]:
    """`--clip` of version 0.1: a number was the largest gradient norm, `maxpool2d` the only way to pool frames."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if not re.fullmatch(r"--(\w+\.)?clip", flag):
            kept.append(word)
        elif (value := value if equals else next(words, "")) != "maxpool2d":
            kept += [flag.removesuffix("clip") + "max-grad-norm", value]
    return kept


def _identity(early: Mapping[str, str]) -> dict[str, str]:
    """The encoder and its norm that the file of `--init` or `--generalist` determines."""
    source = early.get("init") or early.get("generalist")
    if source is None or not Path(source).expanduser().exists():
        return {}
    from encoders.identify import identify  # imports torch, slow

    identity = identify(Path(source).expanduser())
    if identity is None:
        return {}
    return {"encoder": identity.architecture} | ({"norm": identity.norm} if identity.norm else {})


def _with_dataset(config: C, early: Mapping[str, str]) -> C:
    """The configuration with the kind of data set that the flags name."""
    kinds = {kind.dataset: kind for kind in alternatives(type(config), "data")}  # type: ignore[attr-defined]
    name = early.get("dataset")
    if name is None or not kinds:
        return config
    if name not in kinds:
        raise UserError(f"--dataset {name}: choose {', '.join(kinds)}")
    now: Any = config.data  # type: ignore[attr-defined]
    if isinstance(now, kinds[name]):
        return config
    common = {f.name for f in fields(kinds[name])} & {f.name for f in fields(now)} - {"dataset"}
    return replace(config, data=kinds[name](**{name: getattr(now, name) for name in common}))  # type: ignore[type-var]


def _refuse_settings_of_other_layouts(config: Any, arguments: Sequence[str]) -> None:
    """Refuse a flag that only another layout of the data set has, with a sentence that says which."""
    kinds = alternatives(type(config), "data")
    known = {f.name for f in fields(config)} | {f.name for f in fields(config.data)} if kinds else set()
    for kind in kinds:
        for name in {f.name for f in fields(kind)} - known:
            flag = name.replace("_", "-")
            if (value := _value_of(flag, arguments)) is not None:
                others = " or ".join(each.dataset for each in kinds if hasattr(each, name))  # type: ignore[attr-defined]
                raise UserError(f"--{flag} {value} goes with --dataset {others}, not with {config.data.dataset}")


def _line_class(kind: type, default: Any, presets: Sequence[str], preset: str) -> type:
    """The dataclass that tyro parses: a nested class for each group of settings, whose flags bear no prefix.

    A command's own settings come first, those it inherits last.
    """
    groups: dict[str, list[Member]] = {}
    nested: list[Member] = []
    title, taken = "", {f.name for f in fields(kind)}
    for name in _own_first(kind):
        title = next((mark.title for mark in marks(kind)[name] if isinstance(mark, Group)), title)
        value = getattr(default, name)
        if not is_dataclass(value):
            groups.setdefault(title, []).append(_flag(kind, name, value))
        elif kinds := alternatives(kind, name):
            # the data set; where the command has a setting of the same name (a sweep's --task), it is --data.task
            groups[name] = [
                _flag(type(value), f.name, getattr(value, f.name), prefixed=f.name in taken) for f in fields(value)
            ]
            groups[name][0] = _choice(groups[name][0], [each.dataset for each in kinds])  # type: ignore[attr-defined]
        else:
            # of a run's configuration inside a sweep, the settings that the sweep does not set
            made = _nested_class(value, {*marked(type(value), SetBySweep), *taken})
            nested.append((name, made, field(default_factory=made)))
    early = {
        "recipe": (Literal[tuple(presets)], preset, "Preset that sets every default below."),
        "config": (Path | None, None, "Saved or hand-written configuration (JSON or YAML) that sets defaults below."),
    }
    members: list[Member] = [
        (name, Annotated[hint, tyro.conf.arg(help=text)], field(default=default))
        for name, (hint, default, text) in early.items()
    ]
    last = {"run": groups.pop("run")} if "run" in groups else {}
    for title, flags in groups.items():
        members.append(_group(title, flags))
    members += nested
    members += [_group(title, flags) for title, flags in last.items()]
    return make_dataclass(kind.__name__, members, frozen=True, kw_only=True)


def _group(title: str, flags: list[Member]) -> Member:
    made = make_dataclass(title, flags, frozen=True, kw_only=True)
    return title.replace(" ", "_"), made, field(default_factory=made)


def _choice(flag: Member, names: Sequence[str]) -> Member:
    """The flag of the data set's layout, whose type knows only the layout that was chosen, with all layouts."""
    name, _, default = flag
    help_text = f"Layout of the data set: {', '.join(names)}. It decides which settings follow."
    return name, Annotated[str, tyro.conf.arg(help=help_text, metavar="|".join(names), prefix_name=False)], default


def _nested_class(value: Any, without: Collection[str]) -> type:
    """A group with a prefix of its own, `without` some of its settings."""
    kind = type(value)
    members = []
    for name in _own_first(kind):
        if name in without:
            continue
        inner = getattr(value, name)
        if is_dataclass(inner):
            made = _nested_class(inner, ())
            members.append((name, made, field(default_factory=made)))
        else:
            members.append(_flag(kind, name, inner, prefixed=True))
    return make_dataclass(kind.__name__, members, frozen=True, kw_only=True)


def _flag(kind: type, name: str, default: Any, *, prefixed: bool = False) -> Member:
    """A member of a dataclass for tyro, with the documentation of the original one."""
    hint = get_type_hints(kind)[name]
    flag = tyro.conf.arg(help=_documentation(kind).get(name), prefix_name=prefixed)
    return name, Annotated[hint, flag], field(default=default)


def _filled(default: C, parsed: Any) -> C:
    """The configuration with the parsed values in the places that `_line_class` took them from."""
    changed: dict[str, Any] = {}
    for f in fields(parsed):
        group, before = getattr(parsed, f.name), getattr(default, f.name, None)
        if not is_dataclass(group):  # the preset and the file, which have set the defaults already
            continue
        inner = {g.name for g in fields(before)} if is_dataclass(before) else set()
        changed |= {g.name: getattr(group, g.name) for g in fields(group) if g.name not in inner}
        if is_dataclass(before):
            changed[f.name] = _filled_group(before, group)
    return replace(default, **changed)  # type: ignore[type-var]


def _filled_group(before: Any, parsed: Any) -> Any:
    values = {f.name: getattr(parsed, f.name) for f in fields(parsed) if hasattr(before, f.name)}
    values = {k: _filled_group(getattr(before, k), v) if is_dataclass(v) else v for k, v in values.items()}
    return replace(before, **values)


def _own_first(kind: type) -> list[str]:
    """Names of the fields: those of the class itself first, then those of the classes it inherits from."""
    names = {f.name for f in fields(kind)}
    ordered = [name for each in kind.__mro__ for name in vars(each).get("__annotations__", {}) if name in names]
    return list(dict.fromkeys(ordered))


@cache
def _documentation(kind: type) -> dict[str, str]:
    """The docstring below each field, of the class or of the nearest class that documents it."""
    found: dict[str, str] = {}
    for each in reversed([each for each in kind.__mro__ if is_dataclass(each)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if documented and isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = " ".join(following.value.value.split())  # type: ignore[attr-defined]
    return found
