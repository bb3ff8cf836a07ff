"""Worlds, places and people (training_data/settings.yaml), and parties drawn from them."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.scenario import PartyMember
from pipeline.data.tools import VOCABULARY
from pipeline.errors import DataError

SETTINGS = VOCABULARY.with_name("settings.yaml")
# Of the people in composed parties; at 0.15 a short training also took one hero for another (docs/data.md).
_IN_FULL = 0.05
_HIT_DIE = {"Barbarian": 7, "Fighter": 6, "Paladin": 6, "Ranger": 6, "Sorcerer": 4, "Wizard": 4}  # mean a level


class Person(BaseModel):
    """Somebody who may join a party."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    kin: str
    character_class: str = Field(alias="class")


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    worlds: dict[str, tuple[str, ...]] = Field(min_length=1)
    place_names: tuple[str, ...] = Field(min_length=1)
    people: tuple[Person, ...] = Field(min_length=8)
    titles: tuple[str, ...] = ()
    surnames: tuple[str, ...] = ()

    def place(self, rng: random.Random) -> tuple[str, str]:
        """A world and a place in it."""
        world = rng.choice(sorted(self.worlds))
        return world, rng.choice(self.worlds[world])

    def party(self, rng: random.Random, size: int) -> list[PartyMember]:
        """`size` different people of about the same level, some of them wounded, some with a title or a second name."""
        level = rng.randint(1, 9)
        party = [_member(person, max(1, level + rng.randint(-1, 1)), rng) for person in rng.sample(self.people, size)]
        return [replace(member, name=self._in_full(member.name, rng)) for member in party]

    def _in_full(self, name: str, rng: random.Random) -> str:
        if rng.random() >= _IN_FULL:
            return name
        whole = [f"{title} {name}" for title in self.titles] + [f"{name} {surname}" for surname in self.surnames]
        return rng.choice(whole) if whole else name

    def short(self, name: str) -> str:
        """What a party member is called: the name without its title or second name."""
        words = [word for word in name.split() if word not in self.titles]
        return words[0] if words else name


def typical_hit_points(character_class: str, level: int, rng: random.Random) -> int:
    return 4 + (_HIT_DIE.get(character_class, 5) + rng.randint(0, 2)) * level


def load_settings(path: Path = SETTINGS) -> Settings:
    """Read a settings.yaml. Raises DataError naming what is wrong with it."""
    try:
        return _load(path.resolve(), path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"the settings cannot be read: {error}", where=str(path), fix="restore settings.yaml"
        ) from error


@lru_cache(maxsize=4)
def _load(path: Path, modified: int) -> Settings:
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(
            f"the settings have faults: {error}", where=str(path), fix="see the file's other entries"
        ) from error


def _member(person: Person, level: int, rng: random.Random) -> PartyMember:
    most = typical_hit_points(person.character_class, level, rng)
    now = most if rng.random() < 0.6 else rng.randint(most // 2, most)
    return PartyMember(person.name, person.kin, person.character_class, level, now, most)
