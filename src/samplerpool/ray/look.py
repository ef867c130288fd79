"""``python -m samplerpool.ray.look ADDRESS``: what a Ray cluster has, as one line of JSON on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

from samplerpool.errors import SamplerPoolError
from samplerpool.ray.joining import join


def look(address: str) -> dict[str, Any]:
    """The fields of ``pool.cluster.Cluster``.

    Raises:
        UsageError: there is no such cluster.
    """
    join(address)
    import ray

    nodes = [
        {
            "address": node["NodeManagerAddress"],
            "cpus": node["Resources"].get("CPU", 0.0),
            "gpus": node["Resources"].get("GPU", 0.0),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]
    found = {
        "address": ray.get_runtime_context().gcs_address,
        "here": ray.util.get_node_ip_address(),
        "nodes": sorted(nodes, key=lambda node: str(node["address"])),
    }
    ray.shutdown()
    return found


def main() -> int:
    """Look, and tell; what stands in the way is told as well."""
    try:
        found = look(sys.argv[1])
    except SamplerPoolError as error:
        found = {"error": error.to_wire()}
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
