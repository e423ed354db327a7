"""Chat templates for models that bring none. Their generation tags say what is supervised: answer and end of turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The parts of a message, images and texts, on lines of their own, as in LLaVA's data. First of all the token that
# begins a text, where the tokenizer has one: a template writes all special tokens itself.
_CONTENT = """
{{- bos_token -}}
{%- macro content(message) -%}
{%- for part in message['content'] -%}
{{ '' if loop.first else '\\n' }}{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{%- endmacro -%}
"""

# LLaVA-NeXT on Qwen ("qwen_1_5"): the language model of Vision Remember.
_CHATML = (
    _CONTENT
    + """
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ content(message) }}{{ '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}
{{ content(message) }}{{ '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)

# LLaVA on Vicuna ("v1"): needs no token but the one that ends a text.
_VICUNA = (
    _CONTENT
    + """
{{- "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
+ "and polite answers to the human's questions." -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ ' ASSISTANT:' }}{%- generation -%}{{ ' ' + content(message) }}{{ eos_token }}{%- endgeneration -%}
{%- else -%}
{{ ' USER: ' + content(message) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}
"""
)

# LLaVA's alignment of image and caption: what the human says is left out, only its images stay.
_PLAIN = (
    _CONTENT
    + """
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ content(message) }}{{ eos_token }}{%- endgeneration -%}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""
)

TEMPLATES = {"chatml": _CHATML, "vicuna": _VICUNA, "plain": _PLAIN}

_ENDS = {"chatml": "<|im_end|>"}  # of a turn; the other ones write the tokenizer's own token


def find_template(name: str, image_token: str) -> str:
    """The Jinja source of one of ``TEMPLATES``, with a model's own token in the place of an image, or of a file.

    Raises ValueError where there is neither.
    """
    if name in TEMPLATES:
        return TEMPLATES[name].replace("'<image>'", repr(image_token))
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError:
        known = ", ".join(TEMPLATES)
        raise ValueError(f"chat_template is {name!r}; it must be one of {known}, or a Jinja file") from None


def end_of_turn(name: str | None, tokenizer: Any) -> int | None:
    """The token by which one of ``TEMPLATES`` ends a turn; None where that is what the tokenizer ends a text with.

    Raises:
        ValueError: a tokenizer that has no such token, and would write it in several.
    """
    end = _ENDS.get(name or "")
    if end is None:
        return None
    (*others, last) = tokenizer(end, add_special_tokens=False)["input_ids"]
    if others or tokenizer.get_vocab().get(end) != last:
        raise ValueError(
            f"chat_template is {name!r}, which ends a turn with {end}; the tokenizer must have a single token for it: "
            "add one, or name another template"
        )
    return int(last)
