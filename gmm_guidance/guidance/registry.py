"""Guidance rules by name, for command lines and configuration files."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from gmm_guidance.guidance.cfg import CFG, CFGPlusPlus
from gmm_guidance.guidance.listed import (
    PAG,
    SEG,
    STG,
    TPG,
    SkipLayer,
    WeakUnconditional,
)
from gmm_guidance.guidance.recombine import (
    ADG,
    FDG,
    NegativeBase,
    NegativeCFG,
    NormMatchedCFG,
)
from gmm_guidance.guidance.rule import GuidanceRule, Unguided
from gmm_guidance.guidance.updates import APG, MAMBOG, TCFG, CFGZeroStar
from gmm_guidance.guidance.weak import S2Guidance

#: Rules whose options are numbers and names; wrappers and rules that need another
#: model are made in Python.
RULES: dict[str, type[Any]] = {
    "unguided": Unguided,
    "cfg": CFG,
    "cfg++": CFGPlusPlus,
    "cfg-zero": CFGZeroStar,
    "apg": APG,
    "tcfg": TCFG,
    "mambo-g": MAMBOG,
    "adg": ADG,
    "fdg": FDG,
    "norm-matched": NormMatchedCFG,
    "negative": NegativeBase,
    "negative-cfg": NegativeCFG,
    "s2": S2Guidance,
    "slg": SkipLayer,
    "pag": PAG,
    "seg": SEG,
    "stg": STG,
    "tpg": TPG,
    "weak-unconditional": WeakUnconditional,
}


def parse_rule(words: Sequence[str], defaults: Mapping[str, Any]) -> GuidanceRule:
    """The rule of a name and of options ``key=value``.

    Args:
        words: the name, a key of ``RULES``, then options: fields of the rule, such as
            ``blocks=7,8,9``, ``window=0,1`` or ``window=none``.
        defaults: values of fields that are not given and have no default of their own.

    Raises:
        ValueError: for an unknown name or option, an option that is missing, or a value
            that the rule refuses.
    """
    name, *options = words
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown rule {name!r}.{hint} Known: {', '.join(RULES)}.")
    fields = {field.name: field for field in dataclasses.fields(RULES[name])}
    given = dict(_option(name, text, fields) for text in options)
    for key, field in fields.items():
        if key in given or field.default is not dataclasses.MISSING:
            continue
        if key not in defaults:
            raise ValueError(f"rule {name!r} needs {key}=...; give it after the name.")
        given[key] = defaults[key]
    return RULES[name](**given)


def _option(name: str, text: str, fields: Mapping[str, Any]) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or key not in fields:
        raise ValueError(
            f"options of rule {name!r} must be key=value with a key of "
            f"{', '.join(fields) or 'none'}, got {text!r}."
        )
    if value.lower() == "none":
        return key, None
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
    is_set = key in ("blocks", "distribution") and isinstance(parsed, int)
    return key, (parsed,) if is_set else parsed
