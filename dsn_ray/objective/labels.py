"""What the losses ask of labels."""

from torch import Tensor


def check_labels(name: str, labels: Tensor, classes: int) -> None:
    """Refuses labels that are no class.

    Those on a GPU are not looked at: the CPU would wait for all that the GPU has still to do.

    Args:
        name: of the argument.
        labels: `[N]`.
        classes: C.

    Raises:
        ValueError: If one of them does not lie between 0 and C - 1.
    """
    if labels.is_cpu and len(labels):
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            raise ValueError(
                f"{name} must lie between 0 and {classes - 1}; found {least} to {most}."
            )
