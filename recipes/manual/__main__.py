"""`python -m recipes.manual`: writes the generated parts of the pages anew, and a page for each command that has none."""

from __future__ import annotations

import re

from probe.cli.main import COMMANDS

from .generated import HERE, PARTS, pages, skeleton

PART = re.compile(r"<!-- generated: ([^\n]*?) -->\n.*?<!-- end -->", flags=re.DOTALL)


def regenerated(text: str) -> str:
    """A page with its generated parts as the declarations are now."""

    def write(found: re.Match[str]) -> str:
        part, *words = found[1].split()
        return f"<!-- generated: {found[1]} -->\n{PARTS[part](*words)}\n<!-- end -->"

    return PART.sub(write, text)


def main() -> None:
    """Rewrite every page that has drifted, and name it."""
    for name in {name for group in COMMANDS.values() for name, *_ in group} - set(pages()):
        (HERE / f"{name}.md").write_text(skeleton(name), encoding="utf-8")
    for name, text in pages().items():
        now = regenerated(text)
        if now != text:
            (HERE / f"{name}.md").write_text(now, encoding="utf-8")
            print(name)


if __name__ == "__main__":
    main()
