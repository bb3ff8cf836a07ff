"""Faults that only the whole corpus shows: the same text twice, leaks between splits, classes out of balance.

Memory: some hundred bytes a scenario. What is kept of a text are 64-bit digests in flat arrays; the texts of the few
suspects are read again at the end.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
        from datasketch import MinHash  # a second of imports that `--help` must not pay

        self._threshold = threshold
        self._shingles = shingles
        self._sketch = MinHash(num_perm=_PERMUTATIONS, hashfunc=_hash)
        self._bands = array("Q")
        self.count = 0

    def add(self, words: tuple[str, ...]) -> None:
        sketch = self._sketch
        sketch.clear()
        if shingles := self._shingles(words):
            sketch.update_batch([shingle.encode() for shingle in shingles])
            rows = sketch.hashvalues.reshape(-1, _BAND)
            self._bands.extend(hash((index, *row)) & (2**64 - 1) for index, row in enumerate(rows.tolist()))
        else:
            self._bands.extend(0 for _ in range(_PERMUTATIONS // _BAND))
        self.count += 1

    def pairs(self) -> set[tuple[int, int]]:
        """Candidate pairs (earlier, later) by number: those that share a band."""
        import numpy as np

        bands = np.frombuffer(self._bands, dtype=np.uint64).reshape(self.count, _PERMUTATIONS // _BAND)
        return {pair for column in bands.T for pair in _repeats(column) if column[pair[0]]}

    def alike(self, one: tuple[str, ...], other: tuple[str, ...]) -> float:
        """The pair's exact Jaccard index, 0 where it is below the threshold."""
        first, second = self._shingles(one), self._shingles(other)
        index = len(first & second) / max(len(first | second), 1)
        return index if index >= self._threshold else 0.0


class Places:
    """Files and lines by number, without an object for each."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._files, self._at = array("I"), array("I")

    def add(self, path: str, line: int) -> None:
        if not self._paths or self._paths[-1] != path:
            self._paths.append(path)
        self._files.append(len(self._paths) - 1)
        self._at.append(line)

    def __getitem__(self, number: int) -> tuple[str, int]:
        return self._paths[self._files[number]], self._at[number]


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


def _hash(shingle: bytes) -> int:
    return zlib.crc32(shingle)
