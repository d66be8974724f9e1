"""myna: learn a compact copy of a language model by asking it questions."""

__version__ = "0.1.0"
