"""HyperQueue's side, run by the Python that has it: `serve FOLDER SLOTS`, `submit|time FOLDER COUNT COMMAND…`."""

import os
import sys
import time


def main() -> None:
    """Do what the first word says."""
    verb, folder, number = sys.argv[1:4]
    if verb == "serve":
        serve(folder, int(number))
    else:
        seconds = submit(folder, int(number), sys.argv[4:])
        if verb == "time":
            print(seconds)


def serve(folder: str, slots: int) -> None:
    """Be a cluster of one worker until killed."""
    from hyperqueue.cluster import LocalCluster, WorkerConfig  # a client does not need it

    os.makedirs(folder + "/server", exist_ok=True)
    os.makedirs(folder + "/out", exist_ok=True)
    cluster = LocalCluster(server_dir=folder + "/server", worker_config=WorkerConfig(cores=slots))
    print("ready", flush=True)
    while cluster:
        time.sleep(3600)


def submit(folder: str, count: int, command: list[str]) -> float:
    """Queue one job of `count` tasks; return the seconds of the call alone."""
    from hyperqueue import Client, Job

    client = Client(folder + "/server")
    began = time.monotonic()
    job = Job(default_workdir=folder + "/out")
    for _ in range(count):
        job.program(command)
    client.submit(job)
    return time.monotonic() - began


main()
