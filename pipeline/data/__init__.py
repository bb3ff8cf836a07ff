"""Markdown scenarios and drills in, checked and split conversations out."""
