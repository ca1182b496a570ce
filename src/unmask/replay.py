"""Computes a step again that was not finite: `python -m unmask.replay runs/.../nonfinite/step_00000012.ckpt`."""

from unmask.runtime.cli import replay

if __name__ == "__main__":
    replay()
