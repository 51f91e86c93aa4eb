"""The bundled model organism: a small policy, a second one, and their cases."""

from pathlib import Path

FOLDER = Path(__file__).parent  # policy/, second_policy/, train.jsonl, test.jsonl
