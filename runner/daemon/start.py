"""Start attempts and stop them: the board's side of a decision, and the executor's once it is committed."""

from __future__ import annotations

import logging
import os
import shutil

from runner.core.errors import StokerError, Unavailable
from runner.core.job import Attempt
from runner.core.lifecycle import State
from runner.daemon import keys, launch
from runner.daemon.board import RunningAttempt
from runner.daemon.context import Context
from runner.daemon.devices import Devices
from runner.daemon.handout import handed_out
from runner.daemon.launch import Order
from runner.daemon.loop import Loop
from runner.daemon.steps import Step
from runner.ledger.pricing import rate_for
from runner.service.desk import Change, Halt
from runner.service.submit import request_from
from runner.state import jobs
from schedulers.decision import Start
from schedulers.resources import Allocation
from storage.errors import StorageError
from storage.keyfiles import files_of

RELAUNCH_S = 0.5
LAUNCHES_MAX = 3

log = logging.getLogger("stoker.start")


class Starter:
    """Opens attempts and hands them to the executor."""

    def __init__(self, context: Context, loop: Loop, devices: Devices) -> None:
        self.context = context
        self.loop = loop
        self.devices = devices

    def allocate(self, change: Change, start: Start) -> Order:
        """Write the attempt of a decision and take its resources off the board."""
        board = self.context.board
        ref = board.next_ref(start.job_id)
        models = [self.devices.model(uuid) for uuid in start.allocation.devices]
        rate = rate_for(models, start.allocation.cpu_milli, self.context.prices)
        attempt = launch.allocate(
            change,
            start,
            ref,
            token=self.context.token(),
            rates=(rate.gpu_micro_per_hour, rate.cpu_micro_per_hour),
        )
        board.withdraw(ref)
        board.take(RunningAttempt(attempt, start.allocation))
        self.devices.given(attempt)
        return Order(attempt, start.allocation)

    def start(self, order: Order) -> None:
        """Hand a committed attempt to a watcher; where that fails it is looked at again and launched again."""
        running = self.context.board.running.get(order.attempt.id)
        if running is None or self.context.stalled:  # each is looked at again when there is a spawner
            return
        self.context.step(Step.LAUNCH_COMMITTED)
        running.launches += 1
        try:
            running.pidfd = self._launch(order)
        except Exception as error:  # whatever it is, it is this job's alone
            expected = isinstance(error, (StokerError, StorageError, OSError))
            log.warning("job %s was not launched: %s", order.attempt.ref.label, error, exc_info=not expected)
            running.fault = str(error)
            if self.context.is_full(error):
                running.launches -= 1  # a full disk is no fault of the launch: it is tried for as long as it takes
            if running.launches >= LAUNCHES_MAX:
                self.loop.look_at(order.attempt.id)
            else:
                self.loop.after(RELAUNCH_S, lambda: self.loop.look_at(order.attempt.id))
            return
        self.context.step(Step.LAUNCH_SPAWNED)
        self.watch(running)

    def relaunch(self, running: RunningAttempt) -> None:
        """Launch an attempt again whose user code never ran."""
        shutil.rmtree(self.context.control_dir(running.attempt_id), ignore_errors=True)
        self.start(Order(running.attempt, running.allocation))

    def watch(self, running: RunningAttempt) -> None:
        """Have the disk asked when the watcher of an attempt ends."""
        attempt_id, pidfd = running.attempt_id, running.pidfd

        def ended() -> None:
            self.loop.forget(pidfd)
            os.close(pidfd)
            now = self.context.board.running.get(attempt_id)
            if now is not None:
                now.pidfd = -1
                now.dead_ns = self.context.clock.monotonic_ns()
            self.loop.look_at(attempt_id)

        self.loop.listen(pidfd, ended)

    def halting(self, effect: Halt) -> None:
        """Take note of a stop that was just written: what is read in the same turn meets the new state."""
        running = self.context.board.running.get(effect.attempt_id)
        if running is not None:
            running.state = State.STOPPING

    def halt(self, effect: Halt) -> None:
        """Ask a watcher to stop its tree; one that is not there yet or any more is looked at."""
        running = self.context.board.running.get(effect.attempt_id)
        if running is None:
            return
        self.context.step(Step.STOP_COMMITTED)
        spec = self.context.facts(running.ref.job_id).spec
        control_dir = self.context.control_dir(effect.attempt_id)
        if not self.context.executor.stop(control_dir, spec.stop_signal, effect.grace_s):
            self.loop.look_at(effect.attempt_id)
        self.context.step(Step.STOP_SENT)

    def reload(self) -> None:
        """Rebuild what runs from the database, keeping hold of the watchers."""
        board = self.context.board
        kept = dict(board.running)
        connection = self.context.database.writer
        board.clear()
        attempts = {attempt.id: attempt for attempt in jobs.open_attempts(connection)}
        for attempt in attempts.values():
            running = self.running_from(attempt)
            if attempt.id in kept:
                known = kept[attempt.id]
                running.pidfd, running.launches, running.fault = known.pidfd, known.launches, known.fault
            board.take(running)
        self.devices.reload(jobs.held_devices(connection), attempts)

    def running_from(self, attempt: Attempt) -> RunningAttempt:
        """Rebuild what an open attempt holds from its rows."""
        element = jobs.element(self.context.database.writer, attempt.ref)
        row = jobs.job_facts(self.context.database.writer, attempt.ref.job_id)
        assert element is not None and row is not None
        request = request_from(row[2])
        allocation = Allocation(
            attempt.devices, request.cpu_milli * request.workers, request.memory_bytes * request.workers
        )
        return RunningAttempt(attempt, allocation, element.state)

    def _launch(self, order: Order) -> int:
        context, attempt = self.context, order.attempt
        locks = self.devices.locks.descriptors(attempt.devices)
        if locks is None:
            raise Unavailable("its device may have been another runner's meanwhile")
        facts = context.facts(attempt.ref.job_id)
        handed = handed_out(context, facts, {name: digest for name, _, digest in facts.inputs})
        mounts_permitted = context.permitted.mounts
        launch.make_directories(context.paths, context.trees, attempt, facts, handed, mounts_permitted=mounts_permitted)
        context.step(Step.LAUNCH_DIRECTORIES)
        plan = launch.build_plan(
            order,
            facts,
            paths=context.paths,
            mounts_permitted=mounts_permitted,
            handed=handed,
            log_limit_bytes=context.config.storage.log_limit_bytes,
            default_grace_s=context.config.defaults.grace_s,
        )
        environment = launch.build_environment(order, facts, paths=context.paths, now_s=context.clock.now_us() / 1e6)
        given = {name: keys.opened(context, facts.owner_uid, name) for name in facts.spec.keys}
        key_files, pointers = files_of(given, plan.keys_dir or "")
        environment |= {name: value for name, value in pointers.items() if name not in facts.spec.env}
        prepared = context.executor.prepare(attempt.id, plan)
        context.step(Step.LAUNCH_PREPARED)
        return context.executor.launch(prepared, [environment], locks, key_files).pidfd
