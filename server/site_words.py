"""What of a site's own words may enter logs, records and reports?

Reasons quote what came over the network: text of any length that may hold line breaks or control characters.
"""

from __future__ import annotations

LONGEST = 400


def site_words(text: str, longest: int = LONGEST) -> str:
    """Return text as one line of at most ``longest`` printable characters; what is left out shows as "..."."""
    seen = " ".join(text[: 4 * longest].split())  # a text of many megabytes is not looked through
    line = "".join(character if character.isprintable() else "?" for character in seen)
    return line if len(line) <= longest and len(text) <= 4 * longest else line[: longest - 3] + "..."
