"""Splits a text into pieces of limited length, at the best places that it has.

A piece is a slice of the text, and the slices are adjacent, so that nothing can be lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import yaml
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

Breaks: TypeAlias = tuple[re.Pattern[str], ...]
"""Where a text may be cut, best places first: each pattern matches up to and including the end of a piece."""

_PARAGRAPH_END = re.compile(r"\n(?:[^\S\n]*\n)+")
_LINE_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]*_]*\s+|[。！？]["”’」』）]*\s*""")  # noqa: RUF001
_WORD_END = re.compile(r"\s+")

_RUNNING_TEXT: Breaks = (_SENTENCE_END, _WORD_END)
_LINES: Breaks = (_LINE_END, _WORD_END)
PLAIN_TEXT: Breaks = (_PARAGRAPH_END, *_RUNNING_TEXT)

_BLANK_LINES_BEFORE = re.compile(r"\A(?:[^\S\n]*\n)+")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)

_BLOCKS = MarkdownIt("commonmark").enable("table").disable(["inline"])
_INLINE = MarkdownIt("commonmark")


class Block(NamedTuple):
    """A part of a text that is better left whole. It begins where the previous one ends.

    Args:
        end: where it ends in the text.
        within: the blocks that it consists of, such as the items of a list.
        breaks: where it may be cut if there are none within.
    """

    end: int
    within: Sequence[Block]
    breaks: Breaks


class Section(NamedTuple):
    """The text under one heading.

    Args:
        headings: from the outermost to its own; none above a file's first heading.
        text: without the headings.
        blocks: of the text, up to its end.
    """

    headings: tuple[str, ...]
    text: str
    blocks: Sequence[Block]


def plain_section(text: str) -> Section:
    """Return a text without markup as a section, whose paragraphs end at blank lines."""
    return Section((), text, [Block(len(text), (), PLAIN_TEXT)])


def markdown_sections(source: str) -> Iterator[Section]:
    """Yield the sections of a Markdown text, whose lines end with line feeds. Front matter is left out.

    A heading without text is the text of its own section, unless it is in the path of a heading below it.
    """
    source = source[_front_matter(source) :]
    offsets = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
    offsets[-1] = len(source)
    path: list[tuple[int, str]] = []  # level and text of each heading above
    begun, blocks = 0, list[SyntaxTreeNode]()
    top = SyntaxTreeNode(_BLOCKS.parse(source)).children
    for node in [*top, None]:
        if node is not None and node.type != "heading":
            blocks.append(node)
            continue
        ended = len(source) if node is None else offsets[_lines(node)[0]]
        level = 0 if node is None else int(node.tag[1])
        titles = tuple(text for _, text in path if text)
        text = source[begun:ended]
        if text.strip():
            yield Section(titles, text, _blocks(blocks, offsets, begun, ended))
        elif path and path[-1][1] and level <= path[-1][0]:
            yield Section(titles, path[-1][1], plain_section(path[-1][1]).blocks)
        if node is not None:
            path = [*((above, text) for above, text in path if above < level), (level, _heading(node))]
            begun, blocks = offsets[_lines(node)[1]], []


def cut(section: Section, max_chars: int) -> Iterator[str]:
    """Yield the section's text in pieces of at most ``max_chars`` characters; none is blank.

    Each piece has as many whole blocks as fit. A block that does not fit is cut where its inner blocks end, else at its
    breaks, and as a last resort anywhere.
    """
    text, begun, end = section.text, 0, 0
    for next_end in _ends(text, 0, section.blocks, max_chars):
        if end > begun and not _fits(text, begun, next_end, max_chars):
            if piece := _trimmed(text[begun:end]):
                yield piece
            begun = end
        end = next_end
    if piece := _trimmed(text[begun:end]):
        yield piece


def _ends(text: str, begun: int, blocks: Sequence[Block], limit: int) -> Iterator[int]:
    """Yield the places where the text may be cut, close enough that the text between two of them fits."""
    for block in blocks:
        if block.within and not _fits(text, begun, block.end, limit):
            yield from _ends(text, begun, block.within, limit)
        else:
            yield from _broken(text, begun, block.end, block.breaks, limit)
        begun = block.end


def _broken(text: str, begun: int, end: int, breaks: Breaks, limit: int) -> Iterator[int]:
    if _fits(text, begun, end, limit):
        yield end
    elif not breaks:
        yield from range(begun + limit, end, limit)
        yield end
    else:
        for place in (*(match.end() for match in breaks[0].finditer(text, begun, end)), end):
            yield from _broken(text, begun, place, breaks[1:], limit)
            begun = place


def _fits(text: str, begun: int, end: int, limit: int) -> bool:
    return end - begun <= limit or len(_trimmed(text[begun:end])) <= limit


def _trimmed(text: str) -> str:
    """Return the text without blank lines around it. The first line keeps its indentation, which code may need."""
    return _BLANK_LINES_BEFORE.sub("", text.rstrip())


def _blocks(nodes: Sequence[SyntaxTreeNode], offsets: Sequence[int], begun: int, end: int) -> list[Block]:
    """Return the blocks of a section from ``begun`` to ``end`` of the source. Text between two belongs to the first.

    So definitions of links, which are not in any node, stay in the text.

    Args:
        nodes: in the order of the text, or none.
        offsets: where each line of the source begins.
        begun: where the section begins in the source.
        end: where the last block ends in the source.
    """
    if not nodes:
        return [Block(end - begun, (), _LINES)]
    blocks: list[Block] = []
    ends = [*(offsets[_lines(node)[0]] for node in nodes[1:]), end]
    for node, stop in zip(nodes, ends, strict=True):
        inner = [child for child in node.children if child.map and child.type != "inline"]
        breaks = _RUNNING_TEXT if node.type in {"paragraph", "heading"} else _LINES
        blocks.append(Block(stop - begun, _blocks(inner, offsets, begun, stop) if inner else (), breaks))
    return blocks


def _lines(node: SyntaxTreeNode) -> tuple[int, int]:
    """Return the first line of a block, and the first one after it."""
    assert node.map is not None  # noqa: S101 - all but inline nodes have lines
    return node.map


def _heading(node: SyntaxTreeNode) -> str:
    """Return the words of a heading without its markup."""
    parsed = _INLINE.parseInline(node.children[0].content)[0].children or []
    return " ".join("".join(token.content or " " * token.type.endswith("break") for token in parsed).split())


def _front_matter(source: str) -> int:
    """Return the length of the front matter: a YAML mapping between two lines of dashes at the very beginning."""
    found = _FRONT_MATTER.match(source)
    if found is None:
        return 0
    try:
        node = yaml.compose(found[1], Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return 0
    return found.end() if isinstance(node, yaml.MappingNode) else 0
