"""Curves of good runs, which others are compared with: `python -m unmask.reference RUN [RUN ...] out=FILE`."""

from unmask.runtime.cli import reference

if __name__ == "__main__":
    reference()
