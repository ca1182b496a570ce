"""The linear scaling rule."""


def scale_lr(base_lr: float, base_batch_size: int, global_batch_size: int) -> float:
    """Scales a learning rate with the batch: `base_lr * global_batch_size / base_batch_size` (arXiv:1706.02677).

    MAE counts from batches of 256, SimMIM from 512.
    """
    return base_lr * global_batch_size / base_batch_size
