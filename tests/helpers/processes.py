"""Run a function in several processes of one group, started as torchrun starts them."""

import multiprocessing
import os
import socket
import traceback


def new_processes():
    """Return a context that starts processes without anything of this one but imports; fatai is imported once."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fatai.experiment.run", "fatai.training.data_parallel"])
    return server


def in_processes(n, function, *args, timeout_s=120):
    """Return the results of `function(*args)` in `n` processes at once, by rank."""
    server = new_processes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [server.Pipe(duplex=False) for _ in range(n)]
    processes = [
        server.Process(target=_run, args=(k, n, port, pipe[1], function, args)) for k, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    results = []
    try:
        for k, (receiving, sending) in enumerate(pipes):
            sending.close()
            assert receiving.poll(timeout_s), f"process {k} has not returned after {timeout_s} s"
            results.append(receiving.recv())
    finally:
        for process in processes:
            process.kill() if len(results) < n else process.join()
    failed = [f"process {k}:\n{result}" for k, (succeeded, result) in enumerate(results) if not succeeded]
    assert not failed, "\n".join(failed)
    return [result for _, result in results]


def _run(rank, world_size, port, pipe, function, args):
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)
    os.environ.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    try:
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
