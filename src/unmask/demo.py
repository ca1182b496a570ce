"""A page to try a checkpoint on photos: `python -m unmask.demo ckpt_path=FILE`."""

from unmask.runtime.cli import demo

if __name__ == "__main__":
    demo()
