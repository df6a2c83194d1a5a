"""Room for the files that a reader keeps open."""

import resource


def allow_open_files(num_files: int) -> None:
    """Makes room for as many open files, for this process and its workers: readers keep all files of a split open.

    Raises:
      ValueError: the system does not allow it.
    """
    needed = num_files + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ValueError(
                f"`data_dir` has {num_files} files, open at once: raise `ulimit -n` (={hard}) to {needed}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
