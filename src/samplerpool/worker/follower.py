"""``python -m samplerpool.worker.follower``: one of the further processes of a worker whose model is divided.

It holds its part of the weights, and of the keys and values, and runs the passes that rank 0 tells it to.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from samplerpool.config.arguments import WorkerConfig
from samplerpool.config.logs import LogFile
from samplerpool.errors import SamplerPoolError
from samplerpool.worker.ranks import rank_cores, store_path
from samplerpool.worker.upkeep import let_collections_be_rare, offer_to_the_oom_killer
from samplerpool.worker.watch import watch_parent

log = logging.getLogger("samplerpool.worker")


def main() -> int:
    """Follow until rank 0 says that it is the end; 1 if this rank failed, which ends the others."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    offer_to_the_oom_killer()
    document = json.load(sys.stdin)
    config, rank = WorkerConfig.from_dict(document["worker"]), document["rank"]
    log_file = LogFile(
        Path(config.log) if config.log else None,
        config.max_log_bytes,
        f"%(asctime)s %(levelname)s %(name)s: rank {rank}: %(message)s",
        rotates=False,
    )
    watch_parent(config.supervisor_pid, -1)
    cores = rank_cores(config.cores, rank, config.devices)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        _follow(config, rank, document, log_file)
    except SamplerPoolError as error:
        log.error("%s", error.message)
        return 1
    except Exception:
        log.exception("failed")
        return 1
    return 0


def _follow(config: WorkerConfig, rank: int, document: dict[str, Any], log_file: LogFile) -> None:
    from samplerpool.engine.ranks import follow, join
    from samplerpool.model.model_engine import ModelEngine, divided

    join(rank, config.devices, store_path(document["store"]), config.engine.device)
    with Connection(document["channel"]) as channel:
        model = ModelEngine(
            config.model_args, config.engine.device, log.info, place=lambda *_: divided(config.devices)
        ).model
        channel.send_bytes(b"loaded")
        let_collections_be_rare()
        follow(channel, model, config.devices, between=log_file.follow)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # torch.distributed would wait for its threads
