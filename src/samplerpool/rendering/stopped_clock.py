"""A date for chat templates that does not move on.

Templates ask for the date by calling ``strftime_now(format)``, a function that transformers gives them. It gives them
nothing else that can be called, so another clock has to be Jinja, too: a macro of that name, put before the template,
which looks up each directive of the format in a mapping of what it is at that time.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache

from samplerpool.data.messages import NOW

PARTS = "strftime_parts"
"""The mapping's name in the template."""

_DIRECTIVE = re.compile(r"%[-_0^#]?[A-Za-z%]")
_LONGEST = 3

# On one line: its end is what a block's end swallows, so the template behind it begins as if it stood alone.
_MACRO = (
    "{%- macro " + NOW + "(format) %}"
    "{% set held = namespace(text='') %}"
    "{% for character in format %}"
    "{% if held.text or character == '%' %}"
    "{% set held.text = held.text ~ character %}"
    "{% if held.text in " + PARTS + " %}{{ " + PARTS + "[held.text] }}{% set held.text = '' %}"
    "{% elif held.text | length == " + str(_LONGEST) + " %}{{ held.text }}{% set held.text = '' %}{% endif %}"
    "{% else %}{{ character }}{% endif %}"
    "{% endfor %}"
    "{{ held.text }}"
    "{% endmacro %}\n"
)


def asks_for_date(template: str) -> bool:
    """Whether a template may look at the clock."""
    return NOW in template


def with_macro(template: str) -> str:
    """The template with a clock of its own, which needs ``parts`` under the name ``PARTS``."""
    return _MACRO + template


@lru_cache(maxsize=16)
def parts(template: str, now: datetime) -> dict[str, str]:
    """What the directives that stand in a template are at a time."""
    return {directive: now.strftime(directive) for directive in sorted(set(_DIRECTIVE.findall(template)))}
