"""Settings as a user types them."""

import re

_PLAIN = re.compile(r"[A-Za-z0-9/._:%@+-]+")  # what Hydra reads without quotes


def typed(key: str, value: object) -> str:
    """Writes `key=value` so that Hydra reads the value back, whatever its characters; a shell's quotes come on top."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return f"{key}={text}"
    # Backslashes count as themselves but before a quotation mark.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text)
    return f'{key}="{escaped}"'
