"""``python -m tests.engine.rank_one CHANNEL``: a second rank for tests whose first one is pytest itself.

It loads each checkpoint that it is told to, and follows until the ``end``, then waits for the next.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from samplerpool.engine.ranks import follow, join
from samplerpool.model.model_engine import divided


def main(channel: int) -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with Connection(channel) as orders, suppress(EOFError):
        while True:
            checkpoint, store = json.loads(orders.recv_bytes())
            join(1, 2, store, "cpu")
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **divided(2))
            follow(orders, model.eval(), 2)
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
