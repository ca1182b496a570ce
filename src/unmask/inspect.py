"""A look at a data set before the run: `python -m unmask.inspect data=folder data.root=DIR`."""

from unmask.runtime.cli import inspect

if __name__ == "__main__":
    inspect()
