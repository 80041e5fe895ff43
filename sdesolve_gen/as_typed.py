"""Errors of functions in the words of the command line that was typed: ``peak=30.0`` is ``--peak 30`` there, and ``zeta=-1`` is ``--option zeta=-1``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import typer

from sdesolve.methods import METHODS

_ARGUMENT = re.compile(r"(--[\w-]+ )?(?<![\w.'\"-])(\w+)=('[^']*'|\([^()]*\)|\[[^\]]*\]|\{[^}]*\}|\.\.\.|[^\s,;:)]*[^\s,;:.)])")
_LOADED = re.compile(r"load_classifier\('([^']*)'\)")
_UNKNOWN = re.compile(r"'([^']*)' is not known")


@contextmanager
def as_typed(context: typer.Context, **others: Iterable[str]) -> Iterator[None]:
    """Turn the errors within into ones that say what was typed; see :func:`in_flags`."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ValueError(in_flags(str(error), context, **others)) from error


def in_flags(message: str, context: typer.Context, **others: Iterable[str]) -> str:
    """A message with every ``name=value`` as it is typed: the flag of that name, or KEY=VALUE of a flag that has pairs.

    A name that is not known has what was typed before it, so that it is found in a long line.

    Arguments:
        others: by parameter of a flag that has pairs, as in ``option``, the names that may be given there.
    """
    flags = {name: parameter.opts[0] for parameter in context.command.params if parameter.name not in others for name in {str(parameter.name), *map(name_of, parameter.opts)}}
    pairs = {str(parameter.name): parameter.opts[0] for parameter in context.command.params if parameter.name in others}
    apart = {name for name in others if f"{name}s={{" in message}  # said as a dictionary, and not by themselves
    typed = {key: (pairs[name], value) for name in others if name not in apart for key, _, value in (text.partition("=") for text in context.params.get(name) or ())}
    owners = {key: pairs[name] for name, keys in others.items() for key in keys}

    def said(found: re.Match[str]) -> str:
        given, name, text = found.groups()
        if given:
            return found[0]
        if name.removesuffix("s") in pairs:
            return _each(pairs[name.removesuffix("s")], text)
        if name == "method" and "sampler" in flags and _solves(text):
            return _as_flag(flags["sampler"], text)
        of_pair = typed[name][0] if name in typed else owners.get(name)
        if name in flags and not (name in typed and f"{name}={typed[name][1]}" in message):
            return _as_flag(flags[name], text)
        return found[0] if of_pair is None else f"{of_pair} {name}={_as_json(text)}"

    translated = _ARGUMENT.sub(said, _LOADED.sub(r"\1", message))
    for name in (name for name in flags if "_" in name):  # words of the functions alone
        translated = re.sub(rf"(?<![\w.'\"]){name}\b(?!\()", flags[name], translated)
    translated = re.sub(r"\b((?:expected|or) no )(\w+)\b", lambda found: found[1] + flags.get(found[2], found[2]), translated)
    translated = re.sub(r"(--[\w-]+ \S+) \(\1\)", r"\1", translated)  # said in both ways
    unknown = _UNKNOWN.search(message)
    if unknown is None or translated.startswith("--"):
        return translated
    of_flag = next((f"{flags[name]} {value}: " for name, value in context.params.items() if name in flags and value == unknown[1]), "")
    of_pair = next((f"{flag} {key}={value}: " for key, (flag, value) in typed.items() if unknown[1] in (key, value)), "")
    return f"{of_pair or of_flag}{translated}"


def name_of(flag: str) -> str:
    """What a flag's parameter is called in Python: labels of --labels, whose other name is --label."""
    return flag.lstrip("-").replace("-", "_")


def _solves(text: str) -> bool:
    """Whether a method is one of ``solve``, which a command that has other methods calls the sampler."""
    name = str(_value(text))
    return ":" in name or (name in METHODS and name != "auto")


def _as_flag(flag: str, text: str) -> str:
    value = _value(text)
    if value is None:
        return f"no {flag}"
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {text if value is ... else value}"


def _as_json(text: str) -> str:
    """A value as a pair takes it: JSON, or the text itself."""
    value = _value(text)
    return value if isinstance(value, str) else text if value is ... else json.dumps(value, separators=(",", ":"))


def _each(flag: str, text: str) -> str:
    """All pairs of a dictionary."""
    value = _value(text)
    return " ".join(f"{flag} {key}={_as_json(repr(one))}" for key, one in value.items()) if isinstance(value, Mapping) else f"{flag} {text}"


def _value(text: str) -> object:
    """The value that Python's text is of; ``...`` for what is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ...
