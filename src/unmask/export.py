"""Writes a checkpoint for other programs: `python -m unmask.export --help` lists the formats."""

from unmask.runtime.cli import export

if __name__ == "__main__":
    export()
