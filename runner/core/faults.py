"""What pydantic found wrong with a value, in our words: its own speak of types and of Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SENTENCES = {
    "bool_type": "not true or false",
    "dict_type": "not a table",
    "finite_number": "not a number",
    "float_parsing": "not a number",
    "float_type": "not a number",
    "greater_than": "not more than {gt}",
    "greater_than_equal": "less than {ge}",
    "int_from_float": "not a whole number",
    "int_parsing": "not a whole number",
    "int_parsing_size": "not a whole number",
    "int_type": "not a whole number",
    "less_than": "not less than {lt}",
    "less_than_equal": "more than {le}",
    "list_type": "not a list",
    "literal_error": "none of {expected}",
    "missing": "missing",
    "model_type": "not a table",
    "string_pattern_mismatch": "not what it may be",
    "string_too_long": "longer than {max_length} characters",
    "string_too_short": "empty",
    "string_type": "not text",
    "string_unicode": "not text",
    "too_long": "more than {max_length} values",
    "too_short": "empty",
    "value_error": "{error}",
}


def sentence(fault: Mapping[str, Any]) -> str:
    """Return what is wrong, beginning in lower case, of one of the `errors()` of pydantic or FastAPI."""
    return _SENTENCES.get(fault["type"], "not what it may be").format_map(fault.get("ctx", {}))
