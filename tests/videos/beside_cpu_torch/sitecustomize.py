"""Lets torchvision from the package index be imported beside a CPU build of torch, whoever starts a process.

What transformers uses of it, transforms of tensors, is plain Python. But its import also describes two operators of its
compiled part, and that part was built for CUDA's torch and cannot be loaded here. So these two are declared. Nobody
calls them; if somebody did, torch would say that they have no kernel.
"""

import importlib.machinery
import sys
from pathlib import Path

OPERATORS = ("nms", "qnms")


class Declaring:
    """Looks on when torchvision is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name)
            if spec is not None and not _compiled_part_loads(Path(spec.origin).parent):
                _declare()


def _compiled_part_loads(folder):
    import torch

    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _declare():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declare.library = library  # what it declared goes with it


sys.meta_path.insert(0, Declaring())
