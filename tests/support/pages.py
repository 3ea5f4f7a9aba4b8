"""Looking into a page as a browser would."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.all.append((name, dict(attributes)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for other, attributes in self.all if other == name]


def charts_of(page: str) -> dict[str, Any]:
    """The figures of a page, from its JSON."""
    block = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert block is not None
    return dict(json.loads(block.group(1)))


def text_of(page: str) -> str:
    """The words of a page."""
    return re.sub(r"<script.*?</script>|<[^>]+>", " ", page, flags=re.S)


def assert_loads_nothing(page: str) -> None:
    """No element of a page refers to anything outside it."""
    for name, attributes in Elements(page).all:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(key) or ""
            assert value == "" or value.startswith(("#", "data:")), (name, key, value)
