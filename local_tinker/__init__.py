"""An embedded Tinker-compatible service: real LoRA training and sampling on this machine.

The unmodified `tinker` SDK talks to it over HTTP on 127.0.0.1. It is made for one person on one
machine. Programs start it with `start()`; other clients use `python -m local_tinker`.
This package imports nothing of the training loop.
"""

from local_tinker.service import Service, start

__all__ = ["Service", "start"]
