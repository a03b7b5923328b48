"""The registry: which checkpoints were promoted, by whom, on what evidence.

python registry.py list|show|promote|retire|compare|alias|verify|feedback
"""
