"""dm-forge: markdown Dungeons & Dragons scenarios in, a proven Dungeon Master GGUF out."""

__version__ = "0.1.0"
