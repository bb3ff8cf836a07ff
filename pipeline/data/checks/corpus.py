"""Faults that only the whole corpus shows: the same text twice, leaks between splits, classes out of balance.

Memory hardly grows with the corpus: of a scenario some hundred bytes are kept, the digests of its lines. Its sketch and
its path wait in a temporary file; the texts of the few suspects are read again at the end.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pipeline.data.checks.turns import Step
from pipeline.data.dataset import Split
from pipeline.data.drills import DrillFile
from pipeline.data.faults import Fault
from pipeline.data.rules import RULES
from pipeline.data.scenario import Kind, Scenario
from pipeline.data.split import normalised, split_of_line, split_of_scenario

SCENARIO_LIKENESS = 0.3  # Jaccard index of three-word shingles; unrelated scenarios have about 0.01
DRILL_LIKENESS = 0.7  # of single words and pairs
_PERMUTATIONS = 64
_BAND = 2  # rows in a band: 32 bands find a likeness of 0.3 with probability 0.95
_BANDS = _PERMUTATIONS // _BAND
_LONGEST_PATH = 1 << 14  # bytes; Linux and Windows allow less
_CHUNK = 4096  # scenarios whose sketches are read at once
_LINE_WORDS = 6  # shorter player lines may well be said twice
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Text:
    """A place whose text is compared: its file, its line and its words."""

    path: str
    line: int
    words: tuple[str, ...]
    split: Split


class Likeness:
    """Finds texts of one kind that are nearly the same. `shingles` says what is compared."""

    def __init__(self, threshold: float, shingles: Callable[[tuple[str, ...]], set[str]]) -> None:
        self._threshold = threshold
        self._shingles = shingles
        self._sketch = _min_hash()(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        self._bands = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self.count = 0

    def add(self, words: tuple[str, ...]) -> None:
        sketch = self._sketch
        sketch.clear()
        bands = array("Q", bytes(8 * _BANDS))
        if shingles := self._shingles(words):
            sketch.update_batch([shingle.encode() for shingle in shingles])
            rows = sketch.hashvalues.reshape(_BANDS, _BAND).tolist()
            bands = array("Q", (hash((index, *row)) & (2**64 - 1) for index, row in enumerate(rows)))
        self._bands.write(bands)
        self.count += 1

    def pairs(self) -> set[tuple[int, int]]:
        """Candidate pairs (earlier, later) by number: those that share a band. One band is in memory at a time."""
        found = set()
        for band in range(_BANDS if self.count else 0):
            column = self._column(band)
            found |= {pair for pair in _repeats(column) if column[pair[0]]}
        return found

    def close(self) -> None:
        self._bands.close()

    def _column(self, band: int) -> Any:
        import numpy as np

        self._bands.flush()
        self._bands.seek(0)
        chunks = iter(lambda: self._bands.read(8 * _BANDS * _CHUNK), b"")
        return np.concatenate([np.frombuffer(chunk, np.uint64)[band::_BANDS].copy() for chunk in chunks])

    def alike(self, one: tuple[str, ...], other: tuple[str, ...]) -> float:
        """The pair's exact Jaccard index, 0 where it is below the threshold."""
        first, second = self._shingles(one), self._shingles(other)
        index = len(first & second) / max(len(first | second), 1)
        return index if index >= self._threshold else 0.0


def _min_hash() -> Any:
    """datasketch's MinHash, imported when it is wanted: `--help` must not pay for it.

    Its LSH tables, which we do without, would bring in scipy.integrate, a third of the time that 1,000 files take.
    """
    name, empty = "scipy.integrate", ModuleType("scipy.integrate")
    empty.quad = None  # type: ignore[attr-defined]
    stands_in = sys.modules.setdefault(name, empty) is empty
    try:
        from datasketch import MinHash
    finally:
        if stands_in:
            del sys.modules[name]
    return MinHash


class Places:
    """Files and lines by number, without an object for each; the paths lie in a temporary file."""

    def __init__(self) -> None:
        self._paths = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._last, self._end = "", 0
        self._starts, self._at = array("Q"), array("I")

    def add(self, path: str, line: int) -> None:
        if self._last != path or not self._starts:
            self._last, start = path, self._end
            self._end += self._paths.write(path.encode("utf-8", "surrogateescape") + b"\0")
        else:
            start = self._starts[-1]
        self._starts.append(start)
        self._at.append(line)

    def __getitem__(self, number: int) -> tuple[str, int]:
        self._paths.seek(self._starts[number])
        path = self._paths.read(_LONGEST_PATH).partition(b"\0")[0]
        return path.decode("utf-8", "surrogateescape"), self._at[number]

    def close(self) -> None:
        self._paths.close()


class Overlap:
    """Notes every text of a corpus and names those that occur, or nearly occur, elsewhere."""

    def __init__(self, reread: Callable[[str], Iterator[Text]]) -> None:
        self._reread = reread
        self._kinds = {
            "scenario": Likeness(SCENARIO_LIKENESS, triples),
            "drill": Likeness(DRILL_LIKENESS, singles_and_pairs),
        }
        self._places = {"scenario": Places(), "drill": Places()}
        self._lines = array("Q")
        self._owners = Places()
        self._splits = bytearray()

    def add_scenario(self, scenario: Scenario) -> None:
        self._note("scenario", scenario.path, scenario.line, scenario_words(scenario))
        split = split_of_scenario(scenario)
        for turn in scenario.of(Kind.USER):
            self.add_line(turn.text, scenario.path, turn.line, split)

    def add_drills(self, file: DrillFile) -> None:
        for section in file.sections:
            for drill in section.drills:
                words = tuple(normalised(drill.player.text).split())
                self._note("drill", file.path, drill.player.line, words)
                self.add_line(drill.player.text, file.path, drill.player.line, split_of_line(drill.player.text))

    def faults(self) -> Iterator[Fault]:
        """Call once, when every text is noted."""
        exact = list(self._exact())
        yield from exact
        known = {(fault.path, fault.line) for fault in exact}
        for kind in self._kinds:
            yield from (fault for fault in self._near(kind) if (fault.path, fault.line) not in known)
        for kind in self._kinds:
            self._kinds[kind].close()
            self._places[kind].close()
        self._owners.close()

    def _note(self, kind: str, path: str, line: int, words: tuple[str, ...]) -> None:
        self._kinds[kind].add(words)
        self._places[kind].add(path, line)

    def add_line(self, text: str, path: str, line: int, split: Split) -> None:
        words = normalised(text)
        if words.count(" ") >= _LINE_WORDS - 1:
            self._lines.append(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8]))
            self._owners.add(path, line)
            self._splits.append(_SPLITS.index(split))

    def _exact(self) -> Iterator[Fault]:
        import numpy as np

        for earlier, later in sorted(_repeats(np.frombuffer(self._lines, dtype=np.uint64)), key=lambda pair: pair[1]):
            here, there = ((*self._owners[at], _SPLITS[self._splits[at]]) for at in (later, earlier))
            yield _twice("the player's line", 1.0, here, there)

    def _near(self, kind: str) -> Iterator[Fault]:
        likeness, places = self._kinds[kind], self._places[kind]
        texts: dict[str, dict[int, Text]] = {}
        for earlier, later in sorted(likeness.pairs(), key=lambda pair: pair[1]):
            one, other = (self._text(places[index], texts) for index in (later, earlier))
            if one and other and (index := likeness.alike(one.words, other.words)):
                name = "the scenario" if kind == "scenario" else "the drill"
                yield _twice(name, index, (one.path, one.line, one.split), (other.path, other.line, other.split))

    def _text(self, place: tuple[str, int], texts: dict[str, dict[int, Text]]) -> Text | None:
        path, line = place
        if path not in texts:
            if len(texts) > 500:
                texts.clear()
            texts[path] = {text.line: text for text in self._reread(path)}
        return texts[path].get(line)


def _repeats(digests: Any) -> set[tuple[int, int]]:
    """Pairs of neighbours (earlier, later) among equal digests."""
    order = digests.argsort(kind="stable")
    same = (digests[order][1:] == digests[order][:-1]).nonzero()[0]
    return {(int(order[at]), int(order[at + 1])) for at in same}


def _twice(name: str, likeness: float, here: tuple[str, int, Split], there: tuple[str, int, Split]) -> Fault:
    code = "duplicate" if here[2] == there[2] else "leak"
    how = "also stands at" if likeness == 1.0 else f"is {likeness:.0%} the same as"
    what = f"{name} {how} {there[0]}:{there[1]}"
    if code == "leak":
        what += f", and the one is {here[2]} data, the other {there[2]} data"
    return Fault(here[0], here[1], 1, code, what, RULES[code].why, RULES[code].fix, RULES[code].severity)


class Balance:
    """Counts classes, and complains about those the corpus hardly has."""

    def __init__(self) -> None:
        self.categories: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.answers = 0
        self.silent = 0

    def add(self, scenario: Scenario, steps: list[Step]) -> None:
        self.categories[scenario.category] += 1
        called = {step.index for step in steps}
        for step in steps:
            self.calls[step.matched.tool.name] += 1
        for index, turn in enumerate(scenario.turns):
            if turn.kind is Kind.DM and index and scenario.turns[index - 1].kind is Kind.USER:
                self.answers += 1
                self.silent += index not in called

    def faults(self, path: str) -> Iterator[Fault]:
        """Only a corpus is judged (fifty scenarios or more), not a handful of files."""
        if self.categories.total() < 50:
            return
        for name, counts in (("category", self.categories), ("tool", self.calls)):
            mean = counts.total() / len(counts)
            for key, count in counts.items():
                if count < mean / 4:
                    yield _unbalanced(path, f"the {name} {key} occurs {count} times where the mean is {mean:.0f}")
        share = self.silent / max(self.answers, 1)
        if not 0.2 <= share <= 0.5:
            yield _unbalanced(path, f"{share:.0%} of the DM's answers carry no call; a third should")


def _unbalanced(path: str, what: str) -> Fault:
    rule = RULES["imbalance"]
    return Fault(path, 1, 1, "imbalance", what, rule.why, rule.fix, rule.severity)


def scenario_words(scenario: Scenario) -> tuple[str, ...]:
    prose = " ".join(turn.prose for turn in scenario.turns if turn.kind is not Kind.TOOLCALL)
    return tuple(normalised(prose).split())


def triples(words: tuple[str, ...]) -> set[str]:
    return {" ".join(words[index : index + 3]) for index in range(len(words) - 2)}


def singles_and_pairs(words: tuple[str, ...]) -> set[str]:
    return {*words, *(" ".join(words[index : index + 2]) for index in range(len(words) - 1))}
