"""Folders of text and Markdown as passages: nothing is lost, nothing is too long, and ids are stable."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from milvus_pipeline import passages
from milvus_pipeline.errors import InputError
from milvus_pipeline.ingest.split import cut, markdown_sections, plain_section

HANDBOOK = Path(__file__).parents[2] / "configs" / "tutorial" / "handbook"


def write(folder, **files):
    """Write a file of each name into the folder; ``__`` is the slash, and ``_md``, ``_txt`` are the suffixes."""
    for name, text in files.items():
        path = folder / re.sub(r"_(md|txt)$", r".\1", name.replace("__", "/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def cut_markdown(source, max_chars=1000):
    """Return title and text of each passage of a Markdown text."""
    return [
        (" > ".join(section.headings), piece)
        for section in markdown_sections(source)
        for piece in cut(section, max_chars)
    ]


def test_a_passage_has_an_id_a_title_its_text_and_its_file(tmp_path):
    """Ids count from 1 in each file; titles are heading paths, or the file's name; files are sorted."""
    write(
        tmp_path,
        b__two_md="Before.\n\n# One\n\nFirst.\n\n## *Inner* `x`\n\nSecond.\n\nUnderlined\n==========\n\nThird.\n",
        a_b_txt="Plain.\n",
    )
    assert list(passages(tmp_path)) == [
        {"_id": "a_b.txt#1", "title": "a b", "text": "Plain.", "file": "a_b.txt"},
        {"_id": "b/two.md#1", "title": "two", "text": "Before.", "file": "b/two.md"},
        {"_id": "b/two.md#2", "title": "One", "text": "First.", "file": "b/two.md"},
        {"_id": "b/two.md#3", "title": "One > Inner x", "text": "Second.", "file": "b/two.md"},
        {"_id": "b/two.md#4", "title": "Underlined", "text": "Third.", "file": "b/two.md"},
    ]


def test_paragraphs_are_packed_to_the_limit():
    """A passage has as many whole paragraphs as fit, never across a heading."""
    text = "# A\n\naaaa\n\nbbbb\n\ncccc\n\n## B\n\ndddd\n"
    assert cut_markdown(text, 10) == [("A", "aaaa\n\nbbbb"), ("A", "cccc"), ("A > B", "dddd")]


def test_a_long_paragraph_is_cut_after_sentences_then_words():
    """A sentence that does not fit is split between words; only a longer word is split itself."""
    assert cut_markdown("One two. Three four! Five six seven eight nine. Ten.", 20) == [
        ("", "One two. Three four!"),
        ("", "Five six seven eight"),
        ("", "nine. Ten."),
    ]
    assert [piece for _, piece in cut_markdown("ab " + "x" * 25 + " cd", 10)] == ["ab", "x" * 10, "x" * 10, "xxxxx cd"]
    assert [piece for _, piece in cut_markdown("一二三。四五六。七八。", 7)] == ["一二三。", "四五六。七八。"]


def test_a_code_block_stays_whole_if_it_fits():
    """A code block starts a new passage rather than being split; one that cannot fit is split between lines."""
    fence = "```\nx = 1\n\ny = 2\n```"
    assert [piece for _, piece in cut_markdown(f"Some words.\n\n{fence}\n", 24)] == ["Some words.", fence]
    assert [piece for _, piece in cut_markdown(fence, 14)] == ["```\nx = 1", "y = 2\n```"]
    assert cut_markdown("```\n# no heading\n```\n") == [("", "```\n# no heading\n```")]


def test_lists_and_tables_are_cut_between_items_and_rows():
    """An item of several lines stays together if it fits."""
    assert [piece for _, piece in cut_markdown("- one\n  more\n- two\n  more\n- three\n", 16)] == [
        "- one\n  more",
        "- two\n  more",
        "- three",
    ]
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n"
    assert [piece for _, piece in cut_markdown(table, 20)] == ["| a | b |\n|---|---|", "| 1 | 2 |\n| 3 | 4 |"]


def test_a_heading_alone_is_not_lost():
    """A heading without text is a passage, unless it is in the path of a heading below it."""
    text = "# Title\n\n## No dogs in the bar\n\n## Cats\n\nYes.\n\n### Last\n"
    assert cut_markdown(text) == [
        ("Title > No dogs in the bar", "No dogs in the bar"),
        ("Title > Cats", "Yes."),
        ("Title > Cats > Last", "Last"),
    ]


def test_front_matter_is_left_out_and_a_rule_is_not():
    """Text between two lines of dashes at the beginning is front matter only if it is a mapping."""
    assert cut_markdown("---\nowner: me\ntags: [a]\n---\nText.\n") == [("", "Text.")]
    assert cut_markdown("---\nJust words.\n\n---\n\nText.\n") == [("", "---\nJust words.\n\n---\n\nText.")]
    assert cut_markdown("Text.\n\n---\na: b\n---\n")[0][1].startswith("Text.")


def test_definitions_of_links_stay():
    """Link definitions belong to no Markdown block, and are still in the passages."""
    assert cut_markdown("[a]: http://x\n\nSee [a].\n\n[b]: http://y\n") == [
        ("", "[a]: http://x\n\nSee [a].\n\n[b]: http://y")
    ]
    assert cut_markdown("[a]: http://x\n") == [("", "[a]: http://x")]


def test_hidden_files_and_other_kinds_are_left_out(tmp_path):
    """Names with a leading dot, other suffixes and pipes are skipped; a glob selects what it matches."""
    write(
        tmp_path,
        **{
            "a_md": "a",
            "git/b_md": "b",
            ".hidden/c_md": "c",
            ".d_md": "d",
            "e.rst": "e",
            "f/G.MD": "g",
            "h.markdown": "h",
        },
    )
    os.mkfifo(tmp_path / "pipe.md")
    assert [passage["file"] for passage in passages(tmp_path)] == ["a.md", "f/G.MD", "git/b.md", "h.markdown"]
    assert [passage["file"] for passage in passages(tmp_path, glob="**/*.rst")] == ["e.rst"]
    assert [passage["file"] for passage in passages(tmp_path, glob="f/*")] == ["f/G.MD"]


def test_links_to_folders_are_not_followed(tmp_path):
    """A link to a folder is skipped, so that a loop ends; a link to a file is read."""
    write(tmp_path, a__x_md="x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "y.md").symlink_to(tmp_path / "a" / "x.md")
    assert [passage["_id"] for passage in passages(tmp_path)] == ["a/x.md#1", "y.md#1"]
    assert [passage["_id"] for passage in passages(tmp_path, glob="**/*.md")] == ["a/x.md#1", "y.md#1"]


def test_ids_are_one_word_and_differ(tmp_path):
    """Blanks, percent signs and bytes that are not UTF-8 are percent-encoded."""
    write(tmp_path, **{"a b.md": "1", "a%20b.md": "2", "ä.md": "3"})
    (tmp_path / os.fsdecode(b"\xff.md")).write_text("4")
    found = {passage["_id"]: passage for passage in passages(tmp_path)}
    assert set(found) == {"a%20b.md#1", "a%2520b.md#1", "ä.md#1", "%FF.md#1"}
    assert found["%FF.md#1"]["file"] == "\ufffd.md"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "is not UTF-8 text (unexpected end of data at byte 3)"),
        ("text".encode("utf-16-le"), "is not UTF-8 text (a NUL at byte 1); is it UTF-16?"),
    ],
)
def test_a_file_that_is_not_utf8(tmp_path, content, message):
    """A file that is not UTF-8 ends the reading with name and byte, or is reported and skipped."""
    write(tmp_path, a_md="Good.", b_md=content)
    with pytest.raises(InputError) as caught:
        list(passages(tmp_path))
    assert str(caught.value) == f"{tmp_path / 'b.md'}: {message}"
    messages = []
    assert [passage["text"] for passage in passages(tmp_path, on_bad_file=messages.append)] == ["Good."]
    assert messages == [str(caught.value)]


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path):
    """Files with a byte order mark and CRLF are read as others."""
    write(tmp_path, a_md=b"\xef\xbb\xbf# T\r\n\r\na\r\nb\r\n")
    assert [(passage["title"], passage["text"]) for passage in passages(tmp_path)] == [("T", "a\nb")]


def test_a_folder_without_text(tmp_path):
    """Each wrong folder is reported before a passage is yielded."""
    write(tmp_path, blank__a_md=" \n\n", file_md="x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.md").symlink_to("nowhere")
    for folder, message in [
        ("empty", "has no files that end in .md, .markdown or .txt"),
        ("blank", "there is no text in 1 file"),
        ("none", "is not a folder; check the path"),
        ("file.md", "is not a folder; check the path"),
        ("broken", "cannot be read: No such file or directory"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            list(passages(tmp_path / folder))
    for glob in ("/*.md", ""):
        with pytest.raises(InputError, match="cannot be used"):
            passages(tmp_path, glob=glob)
    with pytest.raises(ValueError, match="max_chars must be 1 or more, got 0"):
        passages(tmp_path, max_chars=0)


WORDS = ("word ", "Two words. ", "Why? ", "longerthanmostwords ", "ä。", "\n", "\n\n", " ", "\t", "    ")
MARKUP = ("# ", "## Head\n", "- ", "  ", "> ", "1. ", "```\n", "~~~", "---\n", "===\n", "[a]: b\n", "<!-- c -->\n")
BITS = st.sampled_from([*WORDS, *MARKUP, "| a | b |\n|---|---|\n"])


def unspaced(text):
    """Return the text without blanks."""
    return "".join(text.split())


@settings(max_examples=300)
@given(st.lists(BITS, max_size=40).map("".join), st.integers(1, 60))
def test_nothing_is_lost_in_markdown(source, max_chars):
    """Pieces make up the sections, sections the source in order, and what is between them is in headings."""
    assume(not source.startswith("---"))  # may be front matter
    sections = list(markdown_sections(source))
    words = " ".join(" ".join([*section.headings, section.text]) for section in sections)
    at = 0
    for section in sections:
        pieces = list(cut(section, max_chars))
        assert "".join(map(unspaced, pieces)) == unspaced(section.text)
        assert all(0 < len(piece) <= max_chars and piece.strip() for piece in pieces)
        if section.headings[-1:] != (section.text,):  # a heading that is its own text is found above
            found = source.index(section.text, at)
            assert all(word in words for word in re.sub(r"[#=`-]", " ", source[at:found]).split())
            at = found + len(section.text)
    assert all(word in words for word in re.sub(r"[#=`-]", " ", source[at:]).split())


@settings(max_examples=200)
@given(st.text(alphabet="ab. \n!?。", max_size=200), st.integers(1, 40))
def test_nothing_is_lost_in_plain_text(text, max_chars):
    """All words are there in order, and a word that fits is never split."""
    pieces = list(cut(plain_section(text), max_chars))
    assert "".join(map(unspaced, pieces)) == unspaced(text)
    assert all(0 < len(piece) <= max_chars for piece in pieces)
    if all(len(word) <= max_chars for word in text.split()) and "。" not in text:
        assert " ".join(pieces).split() == text.split()


@pytest.mark.parametrize("max_chars", [80, 300, 1000, 5000])
def test_every_word_of_a_handbook_is_in_its_passages(max_chars):
    """Every word is there in order and every heading in a title; ids are unique, and a second run gives the same."""
    found = list(passages(HANDBOOK, max_chars=max_chars))
    assert len({passage["_id"] for passage in found}) == len(found)
    assert found == list(passages(HANDBOOK, max_chars=max_chars))
    assert max(len(passage["text"]) for passage in found) <= max_chars
    for path in HANDBOOK.rglob("*.*"):
        name = path.relative_to(HANDBOOK).as_posix()
        lines = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL).splitlines()
        own = [passage for passage in found if passage["file"] == name]
        body = " ".join(line for line in lines if not line.startswith("#"))
        assert " ".join(passage["text"] for passage in own).split() == body.split()
        titles = " > ".join(passage["title"] for passage in own)
        assert all(line.lstrip("# ") in titles for line in lines if line.startswith("#"))
