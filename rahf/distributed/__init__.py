"""Several processes: how they are started, how the frozen base is sharded, SIGTERM."""
