"""Run `rahf directions` in this process, then report the number of processes and their engine."""

import sys

from accelerate import PartialState

from rahf.cli import main

if __name__ == "__main__":
    status = main(["directions", *sys.argv[1:]])
    state = PartialState()
    if state.is_main_process:
        print(f"engine {state.distributed_type.value} world {state.num_processes}")
    state.destroy_process_group()
    sys.exit(status)
