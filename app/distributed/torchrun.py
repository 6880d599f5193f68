"""torchrun with a meaningful exit code.

torchrun itself returns 1 whatever its workers did, so a worker killed by the memory limit looks
like a bug. This is the same program (same flags, same PET_* variables); it returns the code of the
worker that failed first, or 128 + signal.

Source: torch/distributed/run.py, torch/distributed/elastic/multiprocessing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from app.distributed.parent import follow_parent, followed
from app.errors import RetryableError

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments; return 0, the first failure's code, or 128 + signal."""
    follow_parent()
    os.environ.update(followed({}))  # torchrun hands its environment to the workers
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as problem:
        rank, failure = problem.get_first_failure()
        log.error(
            "a rank failed first",
            extra={"failed_rank": rank, "exit_code": failure.exitcode, "pid": failure.pid},
        )
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as problem:
        return 128 + int(problem.sigval)
    except (DistError, RendezvousError) as problem:
        # Another node did not come, or was lost; it may be there after a restart.
        log.error("the rendezvous failed", extra={"problem": str(problem)})
        return RetryableError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
