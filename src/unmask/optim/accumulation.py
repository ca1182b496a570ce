"""How a global batch is computed on the devices at hand."""


def accumulated_batches(global_batch_size: int, *, num_devices: int, images_per_device: int | None) -> int:
    """Counts the parts an optimizer step is computed in, so that no device holds more images than it may.

    The fewest that do and divide the batch evenly, so that a recipe keeps its global batch on any number of devices.

    Args:
        global_batch_size: Images of an optimizer step.
        num_devices: Over all nodes.
        images_per_device: Most images a device computes at a time; None is no limit.

    Raises:
        ValueError: The global batch does not divide among the devices, or `images_per_device` is not positive.
    """
    if images_per_device is not None and images_per_device < 1:
        raise ValueError(f"images_per_device must be at least 1, got {images_per_device}")
    device_batch = device_batch_size(global_batch_size, num_devices=num_devices)
    if images_per_device is None:
        return 1
    fewest = -(-device_batch // images_per_device)
    return next(parts for parts in range(fewest, device_batch + 1) if device_batch % parts == 0)


def device_batch_size(global_batch_size: int, *, num_devices: int, accumulated: int = 1) -> int:
    """Divides an optimizer step's images among devices and accumulated batches.

    Raises:
        ValueError: They do not divide evenly.
    """
    parts = num_devices * accumulated
    batch_size, rest = divmod(global_batch_size, parts)
    if rest or not batch_size:
        nearest = max(1, global_batch_size // parts) * parts  # from below: a set that had enough images still has
        batches = f" x {accumulated} accumulated batches" if accumulated > 1 else ""
        raise ValueError(
            f"global_batch_size={global_batch_size} does not divide among {num_devices} devices{batches}; use {nearest}"
        )
    return batch_size
