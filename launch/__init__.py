"""Starting runs: on TPU VMs, on SLURM clusters, and many of them as a sweep."""
