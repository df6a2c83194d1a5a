"""Several processes that train together, each on its own devices.

jax.distributed connects their devices. What it ends with an abort is said in plain words by lines of our own, from
process 0 to each of the others, on the next port: who is missing at the start, and who has died since.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from ghn_jax.runtime import commands, signals

AUTO = "auto"
"""In place of a coordinator: jax asks SLURM, Open MPI or the TPU."""

_DONE = b"."


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, wait: float = 120.0
) -> Generator[None]:
    """Makes this process one of several, before JAX is first used; without a coordinator it does nothing.

    If another one ends inside the context, other than by leaving it, this process ends with exit code 2; and so do the
    others after an error in this one.

    Args:
      coordinator: HOST:PORT of process 0, which needs the next port too, or AUTO.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      wait: seconds to wait for the others at the start.

    Raises ValueError for arguments that do not fit each other, and if the others do not come.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(
                f"`num_processes` (={num_processes}) and `process_id` (={process_id}) need `coordinator`, "
                "HOST:PORT of process 0"
            )
        yield
        return
    if coordinator == AUTO:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f"`coordinator` (={AUTO}) finds no SLURM, Open MPI or TPU here ({error}): give HOST:PORT of process 0, "
                "num_processes and process_id"
            ) from error
        yield
        return
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(
            f"`process_id` (={process_id}) must be in 0..num_processes-1, and `num_processes` is {num_processes}"
        )
    host, port = _address(coordinator)
    if process_id == 0:
        lines = _answer(port + 1, num_processes, wait)
    else:
        lines = {0: _call(host, port + 1, process_id, num_processes, wait)}
    for other, line in lines.items():
        threading.Thread(target=_watch, args=(line, other, num_processes), daemon=True).start()
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=int(wait))
    # CPUs give up a first exchange that begins 30 s apart: have it now, not after compiling for a while
    exchange = jax.pmap(lambda x: jax.lax.psum(x, "device"), axis_name="device", devices=jax.devices())
    jax.block_until_ready(exchange(np.ones(jax.local_device_count())))
    try:
        yield
    except BaseException as error:  # leaving the ordinary way, jax would wait for the others and abort
        if isinstance(error, signals.Interrupted):  # all processes together
            _tell(lines.values())
        code = commands.report(error)
        sys.stdout.flush()
        os._exit(code)
    _tell(lines.values())


def largest(number: int) -> int:
    """The largest of the numbers that the processes have."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def wait_for_others(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _tell(lines: Iterable[socket.socket]) -> None:
    """Lets the others know that this process is done."""
    for line in lines:
        with contextlib.suppress(OSError):
            line.sendall(_DONE)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ValueError(
            f"`coordinator` (={coordinator!r}) is no HOST:PORT: give the address of process 0 and a port"
        )
    return host, int(port)


def _answer(port: int, num_processes: int, wait: float) -> dict[int, socket.socket]:
    """Process 0 waits for a line from each of the others."""
    lines: dict[int, socket.socket] = {}
    deadline = time.monotonic() + wait
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise ValueError(
            f"`coordinator` has port {port - 1}, but the next one cannot be opened ({error}): choose another"
        ) from error
    with server:
        while len(lines) < num_processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                line, _ = server.accept()
            except TimeoutError:
                missing = sorted(set(range(1, num_processes)) - set(lines))
                raise ValueError(
                    f"`num_processes` (={num_processes}), but no word from process {_listed(missing)} in {wait:.0f} s: "
                    "start each with the same --coordinator and --num_processes, and its own --process_id"
                ) from None
            line.settimeout(wait)
            try:
                other, their_number = (int(word) for word in line.recv(64).split())
            except (OSError, ValueError):  # not one of us
                line.close()
                continue
            if their_number != num_processes or other in lines:
                raise ValueError(
                    f"`num_processes` (={num_processes}): process {other} has joined twice, or counts {their_number} "
                    "processes: start each once, all with the same --num_processes"
                )
            line.settimeout(None)
            lines[other] = line
    return lines


def _call(host: str, port: int, process_id: int, num_processes: int, wait: float) -> socket.socket:
    """Every other process calls process 0 until it answers."""
    deadline = time.monotonic() + wait
    while True:
        try:
            line = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 1e-3))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"`coordinator` (={host}:{port - 1}) does not answer ({error}), {wait:.0f} s long: start process 0 "
                    f"there, and let ports {port - 1} and {port} through"
                ) from error
            time.sleep(0.2)
    line.sendall(f"{process_id} {num_processes}".encode())
    line.settimeout(None)
    return line


def _watch(line: socket.socket, other: int, num_processes: int) -> None:
    """Ends this process when the other one is gone, unless it has said that it is done."""
    try:
        word = line.recv(1)
    except OSError:
        word = b""
    if word != _DONE:
        print(
            f"error: process {other} of {num_processes} ended before the run was over: see what it printed, then start "
            "all processes again; the same command goes on from the latest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # the devices of the other process are gone: nothing here can be waited for


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
