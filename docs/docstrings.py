"""Makes Markdown of this project's docstrings, in which a doctest and a product need no markup."""

import re
import textwrap
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
CODE_OR_PRODUCT = re.compile(r"``.+?``|(?<=\w)\*(?=\w)", re.DOTALL)


class Docstrings(griffe.Extension):
    """A doctest becomes a section of examples, and the star of k*k stays a star."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        parts, end = [], 0
        for doctest in DOCTEST.finditer(obj.docstring.value):
            parts += [_text(obj.docstring.value[end : doctest.start()]), "Examples:\n", _indented(doctest[0])]
            end = doctest.end()
        obj.docstring.value = "".join([*parts, _text(obj.docstring.value[end:])])


def _text(text: str) -> str:
    return CODE_OR_PRODUCT.sub(lambda found: r"\*" if found[0] == "*" else found[0], text)


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")
