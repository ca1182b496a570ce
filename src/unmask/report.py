"""A page of one run, or of several beside each other: `python -m unmask.report RUN [RUN ...] [out=FILE]`."""

from unmask.runtime.cli import report

if __name__ == "__main__":
    report()
