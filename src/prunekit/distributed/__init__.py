"""Several processes of torch.distributed at one pruning: what they exchange, and how work is shared out."""

from prunekit.distributed.agreement import check_same, of_first, trained_as_one
from prunekit.distributed.collectives import (
    count_processes,
    from_all_processes,
    from_process,
    local_part,
    means_over_processes,
    on_processes,
    processes,
    rank,
    refuse_together,
    sum_over_processes,
    sum_to_process,
    together,
)
from prunekit.distributed.data_shards import shard
from prunekit.distributed.failure import failing_together
from prunekit.distributed.shared_work import Owners, deal, shared_layers, shared_rows

__all__ = [
    "Owners",
    "check_same",
    "count_processes",
    "deal",
    "failing_together",
    "from_all_processes",
    "from_process",
    "local_part",
    "means_over_processes",
    "of_first",
    "on_processes",
    "processes",
    "rank",
    "refuse_together",
    "shard",
    "shared_layers",
    "shared_rows",
    "sum_over_processes",
    "sum_to_process",
    "together",
    "trained_as_one",
]
