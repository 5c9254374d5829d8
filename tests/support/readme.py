"""The README's code, for tests that run its very text."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str, heading: str) -> list[str]:
    """The code blocks of a language in the section under a heading."""
    text = README.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
