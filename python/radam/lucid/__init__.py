"""Lucid's RAdam and Adam over Lucid's parameters, or over any objects with .data and .grad."""

from .optimizer import Adam, RAdam

__all__ = ["Adam", "RAdam"]
