"""Typer's commands with the help, the -q and the defaults of this command line."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from pixtral_sky import config, output

MAX_WIDTH = 100  # of the help, in columns; narrower on a narrower terminal
# What stands for a value in the help, by its type; for a text it is the option's name.
METAVARS = {"integer": "N", "integer range": "N", "float": "X", "float range": "X", "path": "FILE"}
METAVARS |= {"int": "N", "int range": "N"}
# They say which deployment is meant, so that a `name` of the configuration does not.
OTHER_NAMES = ("url", "everything")
ACT = ("launch", "up", "update")  # they cost money: what they take from the configuration is said
END = ("down",)  # they end what a name from the configuration is the name of: it is asked for


def _quiet(_: Any, __: Any, wanted: bool) -> None:
    output.quiet = output.quiet or wanted


def _show_help(ctx: Any, _: Any, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        output.data(ctx.get_help())
        ctx.exit()


class _Help:
    """The help: wrapped to the terminal, tables too, and no command's summary cut off."""

    help: str | None

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **more: Any) -> Any:
        width = min(shutil.get_terminal_size().columns - 1, MAX_WIDTH)
        return super().make_context(info_name, args, parent, terminal_width=width, **more)  # type: ignore[misc]

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option:
            option.callback = _show_help
        return option

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 (none is longer than a line)
        return summary(self)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write_dl = functools.partial(formatter.write_dl, col_max=max(formatter.width // 3, 12))
        super().format_help(ctx, formatter)  # type: ignore[misc]

    def format_help_text(self, _: Any, formatter: Any) -> None:
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(self.help or "")):
            formatter.write_paragraph()
            with formatter.indentation():
                table = _table(paragraph)
                if table:
                    formatter.write_dl(table)
                else:
                    formatter.write_text(paragraph)


def _table(paragraph: str) -> list[tuple[str, str]]:
    """The rows of a paragraph that is a table of two columns; else []. A row may go on in indented lines."""
    rows: list[tuple[str, str]] = []
    for line in paragraph.removeprefix("\b\n").splitlines():
        if row := re.fullmatch(r"(\S.*?) {2,}(\S.*)", line):
            rows.append((row[1], row[2]))
        elif rows and line.startswith("    "):
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
        else:
            return []
    return rows


class Command(_Help, TyperCommand):
    """A command. It takes -q, and its defaults may come from the configuration."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        quiet = TyperOption(
            param_decls=["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_quiet,
            help="Say nothing but the result and errors.",
        )
        self.params.append(quiet)
        for each in self.params:
            if isinstance(each, TyperOption) and not each.is_flag and each.metavar is None:
                if not hasattr(each.type, "choices"):
                    each.metavar = METAVARS.get(each.type.name, str(each.name).upper())
            elif isinstance(each, TyperArgument) and each.metavar is None:
                each.metavar = str(each.name).upper() + "..." * (each.nargs != 1)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for each in self.params:
            if each.name in (ctx.default_map or {}):
                each.show_default = True  # type: ignore[attr-defined]
        super().format_options(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._check_files(ctx)
        if any(map(ctx.params.get, OTHER_NAMES)) and "name" in configured(ctx):
            ctx.params["name"] = None
        return rest

    def _check_files(self, ctx: Any) -> None:
        """Raise UsageError for the name of a file that is empty: as a Path, it would be the folder here."""
        for each in self.params:
            value = ctx.params.get(each.name)
            if each.type.name == "path" and "" in (value if isinstance(value, (list, tuple)) else [value]):
                from pixtral_sky.errors import UsageError

                option = isinstance(each, TyperOption)
                named = each.opts[0] if option else f"The name of {str(each.metavar).strip('[]')}"
                raise UsageError(f"{named} is empty.", "Give it the name of a file.")

    def invoke(self, ctx: Any) -> Any:
        taken = {name: ctx.params[name] for name in configured(ctx) if ctx.params[name] is not None}
        if taken and ctx.info_name in END and not ctx.params.get("yes"):
            _confirm_end(ctx.command_path, taken["name"])
        elif taken and ctx.info_name in ACT:
            values = ", ".join(f"{name} {value}" for name, value in taken.items())
            output.say(f"From {config.NAME}: {values}.")
        return super().invoke(ctx)


def _confirm_end(command: str, name: str) -> None:
    from pixtral_sky.cli import common
    from pixtral_sky.errors import UsageError

    question = f"Take down {name}, which {config.NAME} names?"
    nobody = UsageError(f"{question} Nobody is here to be asked.", f"Run: {command} {name}")
    common.confirm_or_abort(question, False, nobody)


class Group(_Help, TyperGroup):
    """A group of commands, each with its whole summary."""

    sections: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (titles, and the commands below them)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        for title, listed in (self.sections or {"Commands": tuple(names)}).items():
            rows = [(name, summary(self.commands[name])) for name in listed if name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def summary(command: Any) -> str:
    """The first sentence of its help."""
    return re.split(r"(?<=\.)\s", " ".join(inspect.cleandoc(command.help or "").split()), maxsplit=1)[0]


def is_named_by_argument(command: Any, error: Any) -> bool:
    """Whether the error is that of -n or --name, where the name of a deployment is an argument."""
    has_name = any(isinstance(each, TyperArgument) and each.name == "name" for each in command.params)
    return has_name and getattr(error, "option_name", "") in ("-n", "--name")


def configured(ctx: Any) -> list[str]:
    """The parameters whose values come from the configuration."""
    return [
        name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "DEFAULT_MAP"
    ]


def make(**settings: Any) -> typer.Typer:
    """An application, or a group of commands."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help takes half the time
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )
