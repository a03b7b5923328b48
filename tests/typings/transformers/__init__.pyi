# For pyright alone: to find what this package exports lazily it reads two thousand files of models,
# and finds little more than Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
