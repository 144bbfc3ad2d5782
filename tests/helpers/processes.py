"""A function in several processes that know of each other, as torchrun would start them; its answers by their numbers."""

import multiprocessing
import os
import socket
import traceback


def in_processes(n, function, *args, timeout_s=120):
    """`function(*args)` in `n` processes at once, which load fatai once for all; a list of what it returned in each."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fatai.experiment.run", "fatai.training.data_parallel"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [server.Pipe(duplex=False) for _ in range(n)]
    processes = [
        server.Process(target=_one, args=(k, n, port, pipe[1], function, args)) for k, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    answers = []
    try:
        for k, (receiving, sending) in enumerate(pipes):
            sending.close()
            assert receiving.poll(timeout_s), f"process {k} is still silent after {timeout_s} s"
            answers.append(receiving.recv())
    finally:
        for process in processes:
            process.kill() if len(answers) < n else process.join()
    failed = [f"process {k}:\n{answer}" for k, (ended_well, answer) in enumerate(answers) if not ended_well]
    assert not failed, "\n".join(failed)
    return [answer for _, answer in answers]


def _one(rank, size, port, pipe, function, args):
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)
    os.environ.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    try:
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
