"""Writes the images of any source as shards: `python -m unmask.pack data=folder data.root=DIR out=DIR2`."""

from unmask.runtime.cli import pack

if __name__ == "__main__":
    pack()
