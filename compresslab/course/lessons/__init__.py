"""The checks of each lesson's exercises, one module a lesson."""

__all__: list[str] = []
