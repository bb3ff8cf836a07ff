"""Whatever bytes come, the reader answers with faults, never with an exception, and places them inside the file."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.data.check import check_source
from pipeline.data.dialect import convert_source
from pipeline.data.faults import Faults
from pipeline.data.parse import sections
from pipeline.data.source import Source, decode
from pipeline.data.tools import load_vocabulary
from tests.data.samples import DRILLS, GOOD

ODD = """[roll: stealth]|[[roll: stealth]]|{hero}|  - [health: {hero}, -5]|#######|* * *|1. x|# USER|## Party
### X|- Name: y|> # q|---|[a: b] [c: d]|\t- x|    # code|```|Party: none|[roll:|2d6: 9999999999 = *1*|## [roll: 0d0]|[x:"""
PIECES = st.sampled_from([*GOOD.split("\n"), *DRILLS.split("\n"), *re.split(r"[|\n]", ODD), "<|im_end|>"])
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=30).map("\n".join)


@given(TEXTS, st.sampled_from(["combat/x.md", "drills/x.md"]))
@example("[roll: stealth] # SYSTEM", "combat/x.md")
@example("x", "combat/x.md")
@example("# SYSTEM\n## TOOLCALL\n[x:\nRole: Dungeon Master\n[roll: stealth]", "combat/x.md")
def test_any_text_is_checked(text: str, path: str) -> None:
    faults = Faults(path)
    source = decode(text.encode("utf-8", errors="surrogatepass"), path, faults)
    if source is None:
        assert faults.found
        return
    for fault in check_source(source, load_vocabulary()).faults:
        assert 1 <= fault.line <= len(source.lines) + 1
        assert fault.column >= 1
        assert "\n" not in fault.what


@given(TEXTS)
@example("    # code\n   # heading #\n\t# tab\n#no\n####### seven\n#\ttab\n#")
def test_headings_are_found_without_the_lines_around_them(text: str) -> None:
    tokens = MarkdownIt("zero").enable(["heading", "code"]).parse(text)
    whole = [
        (int(token.tag[1:]), tokens[index + 1].content.strip(), token.map[0] + 1)
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.map
    ]
    found = sections(Source("x.md", text.replace("\r\n", "\n").replace("\r", "\n")))
    assert [(one.level, one.title, one.line) for one in found if one.level] == whole


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(content: bytes) -> None:
    faults = Faults("x")
    assert decode(content, "x", faults) is not None or faults.found


@given(TEXTS)
def test_conversion_is_idempotent_or_refused(text: str) -> None:
    source = decode(text.encode("utf-8", errors="surrogatepass"), "combat/x.md", Faults("x"))
    once = convert_source(source, load_vocabulary()) if source else None
    if once and once.text is not None:
        again = convert_source(Source("combat/x.md", once.text), load_vocabulary())
        assert (again.text, again.faults) == (once.text, [])
    elif once:
        assert once.faults
